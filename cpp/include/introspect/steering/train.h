#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "introspect/core/progress.h"
#include "introspect/engine/run_trie.h"
#include "introspect/export.h"
#include "introspect/models/model.h"
#include "introspect/steering/control_vector.h"
#include "introspect/steering/directions.h"

namespace introspect::steering {

/// Two texts that differ in what the vector shall stand for.
struct TextPair {
  std::string positive;
  std::string negative;
};

/// The concept pairs of the introspection experiments, one a suffix: an empty system message, the user's "Please talk
/// about {concept}." against "Please talk about anything.", and the suffix as the start of the assistant's answer.
///
/// Throws std::invalid_argument for an empty concept or no suffixes, ConfigError for a model without tokenizer or chat
/// template. Source: vgel.me, "Small Models Can Introspect, Too".
INTROSPECT_EXPORT std::vector<TextPair> concept_pairs(const models::Model& model,
                                                      const std::string& concept_name,
                                                      const std::vector<std::string>& suffixes);

struct TrainOptions {
  Method method = Method::pca_center;
  std::optional<std::vector<int64_t>> layers;  ///< default: 1 to n_layers - 1
  int64_t memory_budget = int64_t{1} << 30;    ///< bytes of activations at a time
  uint64_t seed = 0;                           ///< of Method::lat's pairing
  int64_t folds = 2;  ///< for the held-out figures of VectorOrigin::diagnostics; 0: none
  Progress progress;
};

/// Activations of the residual stream after chosen blocks, at the last token of each text.
///
/// Read at blocks.{l}.hook_resid_post, so the last layer's are the stream itself and not its final norm (in
/// transformers' hidden_states the last entry is normed, and so are repeng's directions for the last layer). What texts
/// begin with is run once, however many they are (engine::run_trie); nothing above the highest layer is run.
///
/// Returns float32 [texts, layers, D] on the CPU, in the order given.
/// Throws std::invalid_argument for no texts, an empty text or a budget too small for one token, std::out_of_range for
/// a layer the model does not have, ShapeError for a text longer than n_ctx: all before the first forward pass.
INTROSPECT_EXPORT torch::Tensor last_token_activations(const models::Model& model,
                                                       const std::vector<std::string>& texts,
                                                       const std::vector<int64_t>& layers,
                                                       const engine::TrieOptions& options = {});

/// A control vector from text pairs: last_token_activations, then direction_of_pairs and diagnose for every
/// layer.
///
/// Throws as they do, naming the layer, and std::invalid_argument for too few pairs (pca_diff needs two).
INTROSPECT_EXPORT ControlVector train(const models::Model& model, const std::vector<TextPair>& pairs,
                                      const TrainOptions& options = {});

}  // namespace introspect::steering

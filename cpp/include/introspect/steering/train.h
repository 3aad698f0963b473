#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"
#include "introspect/steering/control_vector.h"

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

/// How pairs of activations become a direction.
enum class Method {
  pca_center,  ///< first component of the pairs centred on their midpoints, of length 1; the experiments'
  pca_diff,    ///< first component of the differences less their mean, of length 1; repeng's default
  mean_diff,   ///< mean of the differences, at its own length
};

/// Throws std::invalid_argument that lists the names.
INTROSPECT_EXPORT Method parse_method(const std::string& name);
INTROSPECT_EXPORT std::string to_string(Method method);

struct TrainOptions {
  Method method = Method::pca_center;
  std::optional<std::vector<int64_t>> layers;  ///< default: 1 to n_layers - 1
  int64_t batch_size = 64;
  Progress progress;
};

/// Activations of the residual stream after chosen blocks, at the last token of each text.
///
/// Read at blocks.{l}.hook_resid_post, so the last layer's are the stream itself and not its final norm (in
/// transformers' hidden_states the last entry is normed, and so are repeng's directions for the last layer). Tokens
/// that neighbours in sorted order begin with are run once a batch; nothing above the highest layer is run.
///
/// Returns float32 [texts, layers, D] on the CPU, in the order given.
/// Throws std::invalid_argument for no texts, an empty text or a batch size below 1, std::out_of_range for a layer the
/// model does not have, ShapeError for a text longer than n_ctx: all before the first forward pass.
INTROSPECT_EXPORT torch::Tensor last_token_activations(const models::Model& model,
                                                       const std::vector<std::string>& texts,
                                                       const std::vector<int64_t>& layers,
                                                       int64_t batch_size = 64,
                                                       const Progress& progress = {});

/// One direction a layer from activations of pairs.
///
/// Points from negative to positive: the sign under which more pairs project in that order (repeng's vote), or the
/// larger sum of projections where the vote is even.
/// Shapes: positive, negative [pairs, D], any float dtype -> float32 [D]. `shares` receives the largest shares of
/// variance (nothing for mean_diff).
/// Throws ShapeError for other shapes and std::invalid_argument where the pairs do not differ.
INTROSPECT_EXPORT torch::Tensor direction_of_pairs(const torch::Tensor& positive_ND,
                                                   const torch::Tensor& negative_ND, Method method,
                                                   std::vector<double>* shares = nullptr);

/// A control vector from text pairs: last_token_activations, then direction_of_pairs for every layer.
///
/// Throws as they do, and std::invalid_argument for too few pairs (pca_diff needs two).
INTROSPECT_EXPORT ControlVector train(const models::Model& model, const std::vector<TextPair>& pairs,
                                      const TrainOptions& options = {});

}  // namespace introspect::steering

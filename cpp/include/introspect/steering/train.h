#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "introspect/activations/collect.h"
#include "introspect/core/progress.h"
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

/// The pairs of one vector, with the name of what it stands for.
struct NamedPairs {
  std::string name;
  std::vector<TextPair> pairs;
};

/// The 582 beginnings of answers that come with the library. Source: repeng; see cpp/share/SOURCES.md.
///
/// Throws IoError as io::share_folder does.
INTROSPECT_EXPORT std::vector<std::string> load_suffixes();

/// The concept pairs of the introspection experiments, one a suffix: an empty system message, the user's "Please talk
/// about {concept}." against "Please talk about anything.", and the suffix as the start of the assistant's answer.
///
/// Throws std::invalid_argument for an empty concept or no suffixes, ConfigError for a model without tokenizer or chat
/// template. Source: vgel.me, "Small Models Can Introspect, Too".
INTROSPECT_EXPORT std::vector<TextPair> concept_pairs(const models::Model& model,
                                                      const std::string& concept_name,
                                                      const std::vector<std::string>& suffixes);

/// Layer -> activations [texts, D], the texts being positive, negative, positive, ... as in repeng.
using Hiddens = std::map<int64_t, torch::Tensor>;

/// How activations become directions.
struct DirectionOptions {
  Method method = Method::pca_center;
  uint64_t seed = 0;  ///< of Method::lat's pairing
  int64_t folds = 2;  ///< for the held-out figures of VectorOrigin::diagnostics; 0: none
  Progress progress;
};

struct TrainOptions {
  DirectionOptions directions;
  activations::ReadOptions read;
  int64_t memory_budget = int64_t{1} << 30;  ///< bytes of activations at a time
  /// In place of reading the model: activations of these texts at these layers.
  std::function<Hiddens(const std::vector<std::string>& texts, const std::vector<int64_t>& layers)>
      compute_hiddens;
  /// Changes the activations before directions are made of them; it may change their width.
  std::function<Hiddens(Hiddens)> transform_hiddens;
};

/// A control vector from text pairs: collect_activations, then direction_of_pairs and diagnose for every layer.
///
/// Throws as they do, naming the layer (and the text for activations that are not finite), std::invalid_argument for
/// too few pairs (pca_diff needs two), and ShapeError for hiddens of a caller's function that are not [2 pairs, D].
INTROSPECT_EXPORT ControlVector train(const models::Model& model, const std::vector<TextPair>& pairs,
                                      const TrainOptions& options = {});

/// train for several sets of pairs, all texts of which are one token trie: what they share, such as one baseline, is run
/// once. Returns the vectors in the order of the sets. Throws as train, naming the set.
INTROSPECT_EXPORT std::vector<ControlVector> train_many(const models::Model& model,
                                                        const std::vector<NamedPairs>& sets,
                                                        const TrainOptions& options = {});

/// The vector from one model to another: directions of the pairs that a text's activations in two models are. The
/// models need not be in memory together, nor at all.
///
/// Its origin names the negative model, which adding it turns towards the positive one.
/// Throws ShapeError for activations of different widths, std::invalid_argument for those of different layers, texts,
/// positions or points, and as direction_of_pairs does, naming the layer.
/// Source: the "model-contrastive" vectors of vgel.me, "Small Models Can Introspect, Too".
INTROSPECT_EXPORT ControlVector contrast(const activations::Activations& positive,
                                         const activations::Activations& negative,
                                         const DirectionOptions& options = {});

}  // namespace introspect::steering

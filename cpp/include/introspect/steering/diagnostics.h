#pragma once

#include <cstdint>
#include <optional>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/steering/directions.h"

namespace introspect::steering {

/// How well one layer's direction tells the two sides of its pairs apart.
struct LayerDiagnostics {
  double explained_variance = 0.0;  ///< share of the differences' second moment that lies along the direction
  double sign_agreement = 0.0;      ///< share of the pairs that project in the direction's order
  /// Share of held-out activations on their side of the middle between the training sides' mean projections.
  std::optional<double> accuracy;
  /// Probability that a held-out positive projects above a negative of its fold (area under the ROC curve).
  std::optional<double> auc;
};

/// Judges the direction that direction_of_pairs found for these pairs.
///
/// accuracy and auc are of pairs the direction has not seen: pair i is in fold i mod `folds`, each fold is judged by
/// the direction of all others, and the folds' figures are averaged by their pairs. They are empty with folds = 0, with
/// fewer than two pairs a fold, and where some fold's rest has no direction.
///
/// Shapes: positive, negative [pairs, D], direction [D].
/// Throws std::invalid_argument for folds that are 1 or negative, and as direction_of_pairs does for the shapes.
INTROSPECT_EXPORT LayerDiagnostics diagnose(const torch::Tensor& positive_ND,
                                            const torch::Tensor& negative_ND,
                                            const torch::Tensor& direction_D, Method method,
                                            int64_t folds = 2, uint64_t seed = 0);

}  // namespace introspect::steering

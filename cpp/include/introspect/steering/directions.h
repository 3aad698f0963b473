#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::steering {

/// How pairs of activations become a direction. Those of principal components have length 1 and repeng's sign.
enum class Method {
  /// First component of the pairs centred on their midpoints; repeng's pca_center and the experiments'.
  pca_center,
  /// First component of all activations less their common mean; what activation-steering calls pca_center.
  pca_global_center,
  /// First component of the differences less their mean; repeng's default.
  pca_diff,
  /// First component of the differences about zero, as in llama.cpp's cvector-generator and steering-vectors. The
  /// centred pairs are +-half their differences, so this is pca_center's direction under the name those have for it.
  pca_diff_uncentered,
  /// First component of the differences, less their mean, of activations paired at random, either side of a pair being
  /// either class: the reading vectors of linear artificial tomography (Zou et al. 2023, arXiv:2310.01405).
  lat,
  /// Mean of the differences, at its own length (contrastive activation addition: Rimsky et al. 2023,
  /// arXiv:2312.06681).
  mean_diff,
  /// Weights, scaled to length 1, of a logistic regression of the side on the activation: intercept, and half the
  /// squared weights added to the sum of log-losses, as in scikit-learn's LogisticRegression with C = 1.
  logistic,
};

/// Throws std::invalid_argument that lists the names.
INTROSPECT_EXPORT Method parse_method(const std::string& name);
INTROSPECT_EXPORT std::string to_string(Method method);

/// One direction a layer from activations of pairs.
///
/// Points from negative to positive: the sign under which more pairs project in that order (repeng's vote), or the
/// larger sum of projections where the vote is even; mean_diff and logistic have that of their formula. `seed` is the
/// pairing of lat and nothing else.
/// Shapes: positive, negative [pairs, D], any float dtype -> float32 [D]. `shares` receives the largest shares of
/// variance (nothing for mean_diff and logistic).
/// Throws ShapeError for other shapes, such as sides of unequal count, and std::invalid_argument for activations that
/// are not finite and where the pairs do not differ.
INTROSPECT_EXPORT torch::Tensor direction_of_pairs(const torch::Tensor& positive_ND,
                                                   const torch::Tensor& negative_ND, Method method,
                                                   std::vector<double>* shares = nullptr, uint64_t seed = 0);

}  // namespace introspect::steering

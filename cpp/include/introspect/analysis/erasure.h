#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/intervention.h"

namespace introspect::analysis {

/// Removes a concept from activations: x - L R (x - b), a change of the rank of the concept.
struct INTROSPECT_EXPORT LeaceEraser {
  torch::Tensor proj_left;   ///< L, float64 [D, k]
  torch::Tensor proj_right;  ///< R, float64 [k, D]
  torch::Tensor bias;        ///< b, float64 [D]: the mean of x; undefined unless affine

  /// Activations [..., D] without the concept, in their dtype. Throws ShapeError for another width.
  torch::Tensor erase(const torch::Tensor& x) const;

  /// The erasure at a point of one block, as operator "leace" of the planner: operands proj_left, proj_right and bias.
  hooks::Intervention as_intervention(int64_t layer, hooks::Point point = hooks::Point::kResidPost) const;

  /// One .safetensors file with the three tensors. Throws IoError.
  void save(const std::filesystem::path& path) const;
  static LeaceEraser load(const std::filesystem::path& path);
};

struct LeaceOptions {
  bool orth = false;   ///< the orthogonal projection off the cross-covariance, instead of the least change
  bool affine = true;  ///< the mean stays where it is
  /// Of the whole of the activations' covariance towards a multiple of one (Bodnar et al. 2014). The guarantee is then
  /// of the shrunken covariance, no longer of the activations seen.
  bool shrinkage = false;
  double svd_tol = 0.01;  ///< singular values of the whitened cross-covariance up to it are taken for noise
};

/// Least-squares concept erasure from batches of activations: only means and covariances are kept, in float64.
///
/// No linear classifier of the activations seen does better than a constant one after erasure, and of all affine maps
/// with this property it changes them least. L = W^+ U and R = U^T W, W the inverse square root of the covariance of x
/// and U a basis of the columns of W times the cross-covariance of x and z.
/// The covariance after it is that before it less L L^T, so that its trace never grows.
/// Source: Belrose et al. 2023, arXiv:2306.03819; concept-erasure's LeaceFitter.
class INTROSPECT_EXPORT LeaceFitter {
 public:
  /// Throws std::invalid_argument for sizes below 1 or a tolerance that is not above 0.
  LeaceFitter(int64_t x_dim, int64_t z_dim, LeaceOptions options = {});

  /// Takes in a batch: x [..., x_dim] and z [..., z_dim] (or [...] for z_dim 1), any dtype; labels of more than two
  /// classes one-hot. Throws ShapeError for other shapes, std::invalid_argument for values that are not finite.
  void update(const torch::Tensor& x, const torch::Tensor& z);

  /// Throws std::invalid_argument for fewer than two rows or a concept that does not vary.
  LeaceEraser eraser() const;

  int64_t n() const { return n_; }
  const torch::Tensor& mean_x() const { return mean_x_; }
  torch::Tensor covariance_x() const;   ///< [D, D], shrunken if asked for; undefined for orth
  torch::Tensor covariance_xz() const;  ///< [D, k]

 private:
  LeaceOptions options_;
  int64_t n_ = 0;
  torch::Tensor mean_x_, mean_z_, sum_xx_, sum_xz_;
};

/// Registers operator "leace", x - s L R (x - b). Loading the library does it; calling it again does nothing.
INTROSPECT_EXPORT void register_erasure();

}  // namespace introspect::analysis

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::steering {

struct ResidualNormOptions {
  std::optional<std::vector<int64_t>> layers;  ///< block numbers; default: every block
  /// Of each row's real tokens, negative ones counted from its end; default: all of them.
  std::optional<std::vector<int64_t>> positions;
  torch::Tensor attention_mask;  ///< bool [B, T], false for padding; undefined: no padding
};

/// The size of the residual stream after each block: the median over positions of its Euclidean norm, by block.
///
/// What "residual norm" means wherever a strength is a fraction of it. A few tokens (the first one, often a full stop)
/// have norms up to hundreds of times the others', and they alone can triple a mean; the median is a usual token's.
///
/// Shapes: tokens int64 [B, T]. Norms are taken in float64. Nothing that is hooked elsewhere takes part, and blocks
/// above the highest layer are not run.
/// Throws std::out_of_range for a layer or a position that is not there, std::invalid_argument for no tokens, no layers
/// or no positions, ShapeError as Model::forward does, Error for a residual stream that is not finite, naming the block.
/// Source of the observation: Sun et al. 2024, arXiv:2402.17762 (massive activations).
INTROSPECT_EXPORT std::map<int64_t, double> residual_norms(const models::Model& model,
                                                           const torch::Tensor& tokens,
                                                           const ResidualNormOptions& options = {});

/// The median Euclidean norm of vectors [..., D], of an even number the mean of the two in the middle; NaN where one of
/// them is not finite. Throws ShapeError for none.
INTROSPECT_EXPORT double median_norm(const torch::Tensor& vectors);

}  // namespace introspect::steering

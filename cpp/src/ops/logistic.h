#pragma once

#include <torch/types.h>

namespace introspect::ops {

/// Weights [D] of the L2-regularised logistic regression of labels (1 or 0) on rows: the minimum of
/// |w|^2 / 2 + sum log(1 + exp(-+(x.w + b))), by Newton's method with a halved step where a whole one does not descend.
///
/// Shapes: rows_ND float64 [N, D], labels_N float64 [N].
/// Throws std::invalid_argument where the gradient does not vanish in 100 steps.
torch::Tensor logistic_weights(const torch::Tensor& rows_ND, const torch::Tensor& labels_N);

}  // namespace introspect::ops

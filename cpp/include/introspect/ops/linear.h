#pragma once

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// x W^T + b over the last dimension, in x's dtype.
///
/// Sums in float32. On the CPU products of float32 are kernels of our own, one for up to four rows that reads each
/// weight once at the memory's speed; so are those of bfloat16, as ops/bfloat16_products.h says, which give a row the
/// same bits whatever the number of rows. All else is at::linear.
///
/// Shapes: x [..., D], weight [N, D], bias [N] or undefined -> [..., N]. Throws ShapeError for others.
INTROSPECT_EXPORT torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight,
                                       const torch::Tensor& bias);

/// x W^T in float32 for float32 x [N, D] and a weight [V, D] of any float dtype, whose rows are widened exactly.
///
/// This is the readout: logits keep float32's digits whatever the model's dtype. Result float32 [N, V].
INTROSPECT_EXPORT torch::Tensor linear_fp32(const torch::Tensor& x_ND, const torch::Tensor& weight_VD);

}  // namespace introspect::ops

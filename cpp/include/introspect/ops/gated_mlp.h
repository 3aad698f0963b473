#pragma once

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// True if `gated_mlp` is there for these and quicker than its three steps: bfloat16 on a CPU with instructions for its
/// products (ops/bfloat16_products.h), 16 rows of x and more, no gradient asked for.
INTROSPECT_EXPORT bool has_gated_mlp(const torch::Tensor& x, const torch::Tensor& W_in,
                                     const torch::Tensor& b_in, const torch::Tensor& W_out,
                                     const torch::Tensor& b_out);

/// An MLP in one step: bit for bit linear(gated(kSilu, g, u), W_out, b_out) of the halves g and u of
/// linear(x, W_in, b_in).
///
/// Shapes: x [..., D], W_in [2M, D], b_in [2M] or undefined, W_out [N, M], b_out [N] or undefined -> [..., N].
/// Throws ShapeError where `has_gated_mlp` is false.
INTROSPECT_EXPORT torch::Tensor gated_mlp(const torch::Tensor& x, const torch::Tensor& W_in,
                                          const torch::Tensor& b_in, const torch::Tensor& W_out,
                                          const torch::Tensor& b_out);

}  // namespace introspect::ops

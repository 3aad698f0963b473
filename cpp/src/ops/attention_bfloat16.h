#pragma once

#include <torch/types.h>

namespace introspect::ops {

/// True if `attention_bfloat16` takes these: bfloat16 on the CPU, the mask (or none) too, no gradient asked for,
/// heads of a multiple of 32 numbers, and products of bfloat16 in use (`has_gemm_bfloat16`).
bool has_attention_bfloat16(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                            const torch::Tensor& v_BGSK, const torch::Tensor& additive);

/// Grouped-query attention: scores, softmax and sums of values in float32, the pattern rounded to bfloat16 before the
/// values are summed -> [B, T, H, K]. A query's result does not depend on what other queries there are.
///
/// additive: bfloat16 [B or 1, 1, T, S], 0 or -inf; undefined: query t sees the keys up to t + (S - T) if `causal`,
/// else all. Where it holds other numbers, the result is undefined: there is no kernel for them.
torch::Tensor attention_bfloat16(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                                 const torch::Tensor& v_BGSK, double scale, const torch::Tensor& additive,
                                 bool causal);

}  // namespace introspect::ops

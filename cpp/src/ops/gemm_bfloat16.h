#pragma once

#include <cstdint>
#include <functional>

#include <c10/util/BFloat16.h>

#include "introspect/ops/bfloat16_products.h"

namespace introspect::ops {

/// True if products of bfloat16 are in use whose instructions this processor has (`bfloat16_products()` is "tiles" or
/// "pairs"): `gemm_bfloat16` may be called.
bool has_gemm_bfloat16();

/// out[m, n] = x[m, :] . w[n, :] + bias[n], summed in float32 and rounded once, bias included.
///
/// Shapes: x [M, K], w [N, K], bias [N] or null, out [M, N], all contiguous. A row's result does not depend on how many
/// rows there are. Each weight is read once for up to some hundred rows.
void gemm_bfloat16(const c10::BFloat16* x, const c10::BFloat16* w, const float* bias, c10::BFloat16* out,
                   int64_t M, int64_t N, int64_t K);

/// Writes the numbers [k, k + columns) of rows [first, first + n) of a matrix [N, K] that is not there in numbers to `out`,
/// a row every `stride` numbers; k is a multiple of 256. Called from all threads.
using UnpackBFloat16 = std::function<void(int64_t first, int64_t n, int64_t k, int64_t columns,
                                          c10::BFloat16* out, int64_t stride)>;

/// The same for such a matrix, of which some rows are there at a time: once for up to some hundred rows of x.
void gemm_bfloat16(const c10::BFloat16* x, const UnpackBFloat16& w, const float* bias, c10::BFloat16* out,
                   int64_t M, int64_t N, int64_t K);

/// True if `gated_mlp_bfloat16` is there for these shapes and quicker than its steps: from as many rows as a panel has, of
/// a D that leaves panels of x in L2 while the weights pass by. Of a larger D the products are nearly all of the work.
bool has_gated_mlp_bfloat16(int64_t rows, int64_t D, int64_t M);

/// out = silu(g) * u W_out^T + out_bias, where g and u are the first and the second half of x W_in^T + in_bias: the bits of
/// two `gemm_bfloat16` with `gated` between them. What lies between stays in L2, and is made while tiles are multiplied.
///
/// Shapes: x [rows, D], in [2 M, D], in_bias [2 M] or null, w_out [N, M], out_bias [N] or null, out [rows, N], all
/// contiguous; M is a multiple of 32.
void gated_mlp_bfloat16(const c10::BFloat16* x, const c10::BFloat16* in, const float* in_bias,
                        const c10::BFloat16* w_out, const float* out_bias, c10::BFloat16* out, int64_t rows,
                        int64_t D, int64_t M, int64_t N);

}  // namespace introspect::ops

#pragma once

#include <cstdint>
#include <functional>

#include <c10/util/BFloat16.h>

namespace introspect::ops {

/// True if this processor runs `gemm_rows` (AVX-512, or AVX2 with FMA).
bool has_gemm_rows();

/// True if `gemm_rows` is also the quickest for x in bfloat16: with AVX2 alone, where oneDNN has no product of bfloat16
/// and ATen takes one dot product after another.
bool has_gemm_rows_bfloat16();

/// out[m, n] = x[m, :] . w[n, :] + bias[n], summed in float32; for tens of rows a BLAS reaches half of this speed.
///
/// Shapes: x [M, K], w [N, K], bias [N] or null, out [M, N], all contiguous. A row's result does not depend on how many
/// rows there are. Weights in bfloat16 are widened a few rows at a time.
void gemm_rows(const float* x, const float* w, const float* bias, float* out, int64_t M, int64_t N,
               int64_t K);
void gemm_rows(const float* x, const c10::BFloat16* w, const float* bias, float* out, int64_t M, int64_t N,
               int64_t K);

/// Writes rows [first, first + n) of a matrix [N, K] that is not there in numbers to out [n, K]. Called from all threads.
using UnpackRows = std::function<void(int64_t first, int64_t n, float* out)>;
void gemm_rows(const float* x, const UnpackRows& w, const float* bias, float* out, int64_t M, int64_t N,
               int64_t K);

void gemm_rows(const c10::BFloat16* x, const c10::BFloat16* w, const float* bias, c10::BFloat16* out,
               int64_t M, int64_t N, int64_t K);

}  // namespace introspect::ops

#pragma once

#include <cstdint>

namespace introspect::ops {

/// True if this processor runs `gemm_rows` (AVX-512).
bool has_gemm_rows();

/// out[m, n] = x[m, :] . w[n, :] + bias[n] in float32; for tens of rows a BLAS reaches half of this speed.
///
/// Shapes: x [M, K], w [N, K], bias [N] or null, out [M, N], all contiguous. A row's result does not depend on how many
/// rows there are.
void gemm_rows(const float* x, const float* w, const float* bias, float* out, int64_t M, int64_t N,
               int64_t K);

}  // namespace introspect::ops

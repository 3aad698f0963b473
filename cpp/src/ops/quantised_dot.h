#pragma once

#include <cstdint>

#include "core/dequantise.h"
#include "ops/few_rows.h"

namespace introspect::ops {

/// out[n * stride + r] = x[n, :] . row r, summed in float32, for N <= kFewRows rows of x [N, K] and the rows of blocks
/// that follow one another at `rows`.
///
/// A row's result does not depend on N. With AVX-512 the usual encodings are unpacked in registers, all others a part of a
/// row at a time.
void dot_rows(const Quantisation& quantisation, const float* x, int64_t N, const uint8_t* rows,
              int64_t n_rows, int64_t K, float* out, int64_t stride);

/// The K values of a row of blocks, rounded to bfloat16.
void round_row(const Quantisation& quantisation, const uint8_t* row, int64_t K, uint16_t* out);

}  // namespace introspect::ops

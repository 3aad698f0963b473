#pragma once

#include <cstdint>

#include "core/dequantise.h"
#include "ops/few_rows.h"

namespace introspect::ops {

/// out[n * stride + r] = x[n, :] . row r, summed in float32, for N <= kFewRows rows of x [N, K] and the rows of blocks
/// that follow one another at `rows`.
///
/// A row's result does not depend on N. With AVX-512 the usual encodings are unpacked in registers, all others a part
/// of a row at a time.
void dot_rows(const Quantisation& quantisation, const float* x, int64_t N, const uint8_t* rows,
              int64_t n_rows, int64_t K, float* out, int64_t stride);

/// K values of each of some rows of blocks, one every `row_bytes`, rounded to bfloat16: a row every `stride` numbers.
void round_rows(const Quantisation& quantisation, const uint8_t* rows, int64_t row_bytes, int64_t n_rows,
                int64_t K, uint16_t* out, int64_t stride);

}  // namespace introspect::ops

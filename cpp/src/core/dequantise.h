#pragma once

#include <cstdint>
#include <string_view>

namespace introspect {

/// How an encoding lays values out: blocks of `block_elements` values in `block_bytes` bytes.
struct BlockLayout {
  int64_t block_elements;
  int64_t block_bytes;
};

/// Expands `n_blocks` consecutive blocks to float32.
using Dequantise = void (*)(const uint8_t* blocks, int64_t n_blocks, float* out);

/// A block quantisation of ggml.
struct Quantisation {
  std::string_view name;
  BlockLayout layout;
  Dequantise dequantise;
};

/// The quantisation called `name` ("Q4_K"), or nullptr.
const Quantisation* find_quantisation(std::string_view name);

/// The same, or F32, F16 or BF16 as blocks of one value.
const Quantisation* find_block_format(std::string_view name);

/// Rounds to nearest, ties to even, as ATen does.
void round_to_bfloat16(const float* values, int64_t n, uint16_t* out);
void round_to_float16(const float* values, int64_t n, uint16_t* out);

}  // namespace introspect

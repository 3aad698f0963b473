#pragma once

#include <vector>

#include <torch/types.h>

#include "core/dequantise.h"

namespace introspect::ops {

/// Rows of blocks that follow one another in memory.
struct BlockRows {
  const Quantisation* quantisation = nullptr;
  const uint8_t* bytes = nullptr;
  int64_t n = 0;
};

/// x [N, K] times the rows of `parts`, V in all, plus bias [V] or nothing -> [N, V] in x's dtype, float32 or bfloat16,
/// summed in float32. `x` is contiguous on the CPU and N at least one.
torch::Tensor quantised_product(const torch::Tensor& x_NK, const std::vector<BlockRows>& parts,
                                const torch::Tensor& bias);

}  // namespace introspect::ops

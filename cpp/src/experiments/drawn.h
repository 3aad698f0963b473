#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include <torch/types.h>

#include "experiments/design.h"

namespace introspect::experiments {

/// Independent Gaussian directions of one length for tokens [first, last) of the injected ones at the output of a block:
/// float32 [1, tokens, d_model]. What is drawn hangs on the seed, the token's number and the block alone.
torch::Tensor drawn_noise(const Injection& injection, int64_t block, std::pair<int64_t, int64_t> tokens,
                          int64_t d_model, double length);

/// What elements are multiplied by where each is dropped with probability `rate`: 0, or 1 / (1 - rate). As drawn_noise.
torch::Tensor drawn_dropout(const Injection& injection, int64_t block, std::pair<int64_t, int64_t> tokens,
                            int64_t d_model, double rate);

}  // namespace introspect::experiments

#pragma once

#include <cstdint>

#include <torch/types.h>

#include "introspect/models/config.h"

namespace introspect::engine {

/// Rows of one product: more are no faster.
inline constexpr int64_t kMaxRowsPerProduct = 2048;

/// Bytes that one token of a pass takes in a model: what every budget is reckoned with.
struct TokenBytes {
  TokenBytes(const models::Config& cfg, torch::ScalarType dtype);

  int64_t in_block = 0;  ///< the widest activations of a block that live at the same time
  int64_t keys = 0;      ///< its keys and values in one layer
  int64_t residual = 0;
  int64_t kept = 0;         ///< a residual that is kept: float32, or float64 of a float64 model
  int64_t kept_weight = 0;  ///< one key's weights of a pattern that is kept, in all heads
};

}  // namespace introspect::engine

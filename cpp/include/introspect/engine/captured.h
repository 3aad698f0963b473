#pragma once

#include <cstdint>
#include <optional>

#include <torch/types.h>

#include "introspect/cache/kv_cache.h"

namespace introspect::engine {

/// What is kept of a run.
enum class What : uint8_t {
  activation,  ///< at a point of some layers: [positions, layers, ...]
  attention,   ///< the pattern of heads from positions to keys: [positions, layers, heads, keys]
  cache,       ///< the keys and values of everything down to a segment's end
};

/// Activations or attention in float32 (float64 of a float64 model) on the CPU, or a cache.
struct Captured {
  torch::Tensor values;
  std::optional<cache::KVCache> cache;
};

}  // namespace introspect::engine

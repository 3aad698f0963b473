#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "introspect/cache/kv_cache.h"
#include "introspect/hooks/hook_point.h"

namespace introspect::engine {

/// What is kept of a run.
enum class What : uint8_t {
  activation,  ///< at a point of some layers: [positions, layers, ...]
  attention,   ///< the pattern of heads from positions to keys: [positions, layers, heads, keys]
  cache,       ///< the keys and values of everything down to a segment's end
};

/// What is read of a run of tokens.
struct Read {
  using What = engine::What;

  What what = What::activation;
  std::vector<int64_t> positions{-1};  ///< of the segment's tokens; negative ones count from its end
  std::vector<int64_t> layers;         ///< empty: all, and for caches
  hooks::Point point = hooks::Point::kResidPost;
  std::vector<int64_t> heads;  ///< of attention; empty: all
  /// Of attention: positions [first, last) of the whole sequence that are looked at.
  int64_t first_key = 0, last_key = std::numeric_limits<int64_t>::max();
};

/// Activations or attention in float32 (float64 of a float64 model) on the CPU, or a cache.
struct Captured {
  torch::Tensor values;
  std::optional<cache::KVCache> cache;
};

}  // namespace introspect::engine

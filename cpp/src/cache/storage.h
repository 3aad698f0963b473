#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "introspect/cache/kv_cache.h"

namespace introspect::cache {

/// One layer's memory and how much of it each cache that shares it can see.
struct KVCache::Storage {
  torch::Tensor k_BGCK, v_BGCK;  // C: capacity
  std::mutex mutex;
  std::vector<int64_t> lengths;  // one entry per holder

  explicit Storage(const torch::Tensor& k, const torch::Tensor& v) : k_BGCK(k), v_BGCK(v) {}

  void enter(int64_t length) {
    const std::scoped_lock lock(mutex);
    lengths.push_back(length);
  }
  void leave(int64_t length) {
    const std::scoped_lock lock(mutex);
    lengths.erase(std::find(lengths.begin(), lengths.end(), length));
  }
  /// Lets the holder of `from` positions hold `to` of them, if nobody else sees those in between.
  bool extend(int64_t from, int64_t to) {
    const std::scoped_lock lock(mutex);
    if (to > k_BGCK.size(2)) return false;
    auto mine = std::find(lengths.begin(), lengths.end(), from);
    *mine = to;
    for (auto it = lengths.begin(); it != lengths.end(); ++it) {
      if (it == mine || *it <= from) continue;
      *mine = from;
      return false;
    }
    return true;
  }
  /// Whether the holder of `length` positions can extend up to the capacity.
  bool is_free_behind(int64_t length) {
    const std::scoped_lock lock(mutex);
    return std::ranges::all_of(lengths, [&](int64_t other) { return other <= length; });
  }
  bool is_shared() {
    const std::scoped_lock lock(mutex);
    return lengths.size() > 1;
  }
  int64_t nbytes() const { return static_cast<int64_t>(k_BGCK.nbytes() + v_BGCK.nbytes()); }
};

}  // namespace introspect::cache

#include <algorithm>
#include <utility>

#include "cache/storage.h"
#include "introspect/cache/kv_cache.h"
#include "introspect/core/check.h"

namespace introspect::cache {

void KVCache::pin(const torch::Tensor& place, int64_t n) {
  const auto use = enter("KVCache::pin");
  check<std::invalid_argument>(n >= length_, "KVCache::pin: the ", length_,
                               " positions held must be among those pinned, got ", n);
  pinned_ = {};
  for (auto& l : layers_) {
    check<Error>(l.device == place.device(), "KVCache::pin: every layer must live on ", place.device(),
                 ", got one on ", l.device);
    if (!l.storage || l.storage->is_shared() || l.storage->k_BGCK.size(2) < n) resize_layer(l, n);
    // What is hidden by a mask must still be finite.
    for (const auto& all_BGCK : {l.storage->k_BGCK, l.storage->v_BGCK})
      all_BGCK.narrow(2, l.length, n - l.length).zero_();
  }
  pinned_ = {place, n};
}

/// Called by destructors: it asks for nothing that could fail.
void KVCache::unpin() {
  pinned_ = {};
}

bool KVCache::extend() {
  const auto use = enter("KVCache::extend");
  check<Error>(pinned_.place.defined(), "KVCache::extend: the cache must be pinned");
  const auto has_room = [&](const Layer& l) {
    return l.length < pinned_.n && l.storage->is_free_behind(l.length);
  };
  if (!std::ranges::all_of(layers_, has_room)) return false;
  for (auto& l : layers_) {
    if (!l.storage->extend(l.length, l.length + 1)) {  // a fork in another thread came in between
      rollback();
      return false;
    }
    ++l.length;
  }
  return true;
}

/// One position where the device says, and all that is pinned.
std::pair<torch::Tensor, torch::Tensor> KVCache::put(const Layer& layer, const torch::Tensor& k_BGTK,
                                                     const torch::Tensor& v_BGTK) const {
  check<ShapeError>(k_BGTK.size(2) == 1, "KVCache::append: a pinned cache takes one position at a time, got ",
                    k_BGTK.size(2));
  const auto shown = [&](const torch::Tensor& all_BGCK, const torch::Tensor& now_BGTK) {
    all_BGCK.index_copy_(2, pinned_.place, now_BGTK);
    return all_BGCK.narrow(2, 0, pinned_.n);
  };
  return {shown(layer.storage->k_BGCK, k_BGTK), shown(layer.storage->v_BGCK, v_BGTK)};
}

}  // namespace introspect::cache

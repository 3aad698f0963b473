#pragma once

#include <cstdint>

#include <torch/types.h>

#include "introspect/cache/kv_cache.h"
#include "introspect/hooks/hook_registry.h"
#include "introspect/ops/attention.h"

namespace introspect::nn {

/// What attention knows of positions: the rotary angles of this pass's, and which keys each query may see.
struct Positions {
  torch::Tensor cos, sin;  // [B or 1, T, rotary_dim / 2]; undefined where nothing is rotated
  ops::AttentionMask mask;

  /// The same on a layer's device; what a token tree is stays on the CPU.
  Positions to(torch::Device device) const {
    auto out = *this;
    for (auto* tensor : {&out.cos, &out.sin, &out.mask.additive})
      if (tensor->defined()) *tensor = tensor->to(device);
    return out;
  }
};

/// What one forward pass carries from layer to layer beside the residual stream.
struct Context {
  const hooks::HookRegistry* hooks =
      nullptr;                        // null: nothing is read or changed, and a hook point costs this test
  cache::KVCache* cache = nullptr;    // null: every key is in this pass
  int64_t offset = 0;                 // positions before this pass's first
  const hooks::Text* text = nullptr;  // for hooks that depend on it
  hooks::Stash* stash = nullptr;      // for interventions that read another point
  int64_t layer = -1;                 // the block that is running; -1 outside of blocks
  Positions global, local;            // for layers that see every key, and for those with a window

  /// The positions of this pass, int64 [n] on the CPU, whose output the block is run for; keys and values are those of all.
  /// Undefined: all. Only where nothing is hooked and in token trees.
  torch::Tensor outputs;

  /// The activation `x` at one of the current layer's points, after what is hooked there.
  torch::Tensor hook(hooks::Point point, const torch::Tensor& x) const {
    return hooks ? hooks->run({point, layer}, x, offset, text, stash) : x;
  }

  /// True if something is read or changed at one of the current layer's points.
  bool wants(hooks::Point point) const { return hooks && hooks->wants({point, layer}); }

  /// True if something there may change the activation.
  bool changes(hooks::Point point) const { return hooks && hooks->changes({point, layer}); }
};

}  // namespace introspect::nn

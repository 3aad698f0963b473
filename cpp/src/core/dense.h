#pragma once

#include <torch/types.h>

#include "introspect/core/check.h"

namespace introspect {

/// What a tensor is that has no elements in memory one after another; null for one that has them.
inline const char* not_dense(const torch::Tensor& t) {
  if (!t.defined()) return "none";
  if (t.layout() != torch::kStrided) return "a sparse one";
  if (t.is_nested()) return "a nested one";
  if (t.is_quantized()) return "a quantised one";
  if (t.is_meta()) return "one on the device meta, which has no elements";
  return nullptr;
}

/// Throws E unless `t` is a tensor whose elements can be read; `who` says whose it is.
template <typename E, typename... Who>
void check_dense(const torch::Tensor& t, const Who&... who) {
  if (const char* what = not_dense(t)) [[unlikely]]
    throw E(concat(who..., " must be a dense tensor, got ", what));
}

}  // namespace introspect

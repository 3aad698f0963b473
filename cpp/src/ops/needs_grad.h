#pragma once

#include <torch/types.h>

namespace introspect::ops {

/// True if a gradient of one of these tensors, which may be undefined, is asked for: ATen's operations then, which record it.
template <typename... Tensors>
bool needs_grad(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && ((tensors.defined() && tensors.requires_grad()) || ...);
}

}  // namespace introspect::ops

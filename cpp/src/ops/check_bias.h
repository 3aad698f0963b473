#pragma once

#include <string_view>

#include <torch/types.h>

#include "introspect/core/check.h"

namespace introspect::ops {

/// Throws ShapeError unless the bias is [n] or undefined; `what` begins the message.
inline void check_bias(std::string_view what, const torch::Tensor& bias, int64_t n) {
  check<ShapeError>(!bias.defined() || (bias.dim() == 1 && bias.size(0) == n), what, " must be [", n,
                    "], got ", bias.defined() ? bias.sizes() : at::IntArrayRef{});
}

}  // namespace introspect::ops

#pragma once

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// a + b, as at::add: of the same bits but for bfloat16 below 2^-126, which processors that round in hardware take for zero.
INTROSPECT_EXPORT torch::Tensor add(const torch::Tensor& a, const torch::Tensor& b);

}  // namespace introspect::ops

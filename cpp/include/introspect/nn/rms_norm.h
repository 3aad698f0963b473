#pragma once

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/context.h"

namespace introspect::nn {

/// Root-mean-square norm with its two hook points: the scale [..., 1], and the normalised input before the weight.
struct INTROSPECT_EXPORT RmsNorm {
  torch::Tensor weight;  // [D]
  double eps = 1e-6;
  hooks::Point scale_point = hooks::Point::kLn1Scale;
  hooks::Point normalized_point = hooks::Point::kLn1Normalized;

  torch::Tensor forward(const torch::Tensor& x_BTD, const Context& ctx) const;
};

}  // namespace introspect::nn

#pragma once

#include <torch/types.h>

namespace introspect::sae {

/// What a dictionary of `dtype` computes in: bfloat16 and float16 hold weights and results, sums are in float32.
inline torch::ScalarType arithmetic(torch::ScalarType dtype) {
  return dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}

}  // namespace introspect::sae

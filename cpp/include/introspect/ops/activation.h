#pragma once

#include <cstdint>
#include <string_view>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// The non-linearity of an MLP.
enum class Activation : uint8_t {
  kSilu,     // x * sigmoid(x)
  kGelu,     // x * Phi(x), exact
  kGeluNew,  // its tanh approximation (Hendrycks & Gimpel 2016, arXiv:1606.08415)
};

/// "silu", "gelu" or "gelu_new". Throws ConfigError for another name.
INTROSPECT_EXPORT Activation parse_activation(std::string_view name);

/// Element by element, any shape.
INTROSPECT_EXPORT torch::Tensor activate(Activation kind, const torch::Tensor& x);

/// activate(kind, gate) * x, as in SwiGLU and its kin (Shazeer 2020, arXiv:2002.05202).
INTROSPECT_EXPORT torch::Tensor gated(Activation kind, const torch::Tensor& gate, const torch::Tensor& x);

}  // namespace introspect::ops

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

  /// Gated only: g * sigmoid(1.702 g) * (x + 1), of a gate g that is at most 7 and an x from -7 to 7 (gpt-oss).
  kSwigluClamped,
};

inline constexpr double kSwigluAlpha = 1.702, kSwigluLimit = 7.0;

/// "silu", "gelu", "gelu_new" or "swiglu_clamped". Throws ConfigError for another name.
INTROSPECT_EXPORT Activation parse_activation(std::string_view name);

/// Element by element, any shape. Throws ConfigError for one that needs a gate.
INTROSPECT_EXPORT torch::Tensor activate(Activation kind, const torch::Tensor& x);

/// activate(kind, gate) * x, but for kSwigluClamped, as in SwiGLU and its kin (Shazeer 2020, arXiv:2002.05202).
INTROSPECT_EXPORT torch::Tensor gated(Activation kind, const torch::Tensor& gate, const torch::Tensor& x);

}  // namespace introspect::ops

#include "introspect/ops/activation.h"

#include "introspect/core/check.h"

namespace introspect::ops {

Activation parse_activation(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new") return Activation::kGeluNew;
  check<ConfigError>(name == "swiglu_clamped",
                     "activation: must be silu, gelu, gelu_new or swiglu_clamped, got '", name, "'");
  return Activation::kSwigluClamped;
}

torch::Tensor activate(Activation kind, const torch::Tensor& x) {
  switch (kind) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluNew:
      return at::gelu(x, "tanh");
    case Activation::kSwigluClamped:
      throw ConfigError("activation: swiglu_clamped needs a gate");
  }
  return {};
}

torch::Tensor gated(Activation kind, const torch::Tensor& gate, const torch::Tensor& x) {
  if (kind == Activation::kSwigluClamped) {
    const auto g = gate.clamp_max(kSwigluLimit);
    return (x.clamp(-kSwigluLimit, kSwigluLimit) + 1) * (g * (g * kSwigluAlpha).sigmoid());
  }
  auto y = activate(kind, gate);
  const bool graph = at::GradMode::is_enabled() && (gate.requires_grad() || x.requires_grad());
  return graph ? y * x : y.mul_(x);
}

}  // namespace introspect::ops

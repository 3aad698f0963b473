#include "introspect/ops/activation.h"

#include "introspect/core/check.h"

namespace introspect::ops {

Activation parse_activation(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  check<ConfigError>(name == "gelu_new", "activation: must be silu, gelu or gelu_new, got '", name, "'");
  return Activation::kGeluNew;
}

torch::Tensor activate(Activation kind, const torch::Tensor& x) {
  switch (kind) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluNew:
      return at::gelu(x, "tanh");
  }
  return {};
}

torch::Tensor gated(Activation kind, const torch::Tensor& gate, const torch::Tensor& x) {
  auto y = activate(kind, gate);
  const bool graph = at::GradMode::is_enabled() && (gate.requires_grad() || x.requires_grad());
  return graph ? y * x : y.mul_(x);
}

}  // namespace introspect::ops

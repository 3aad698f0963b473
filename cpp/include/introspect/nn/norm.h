#pragma once

#include <string>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/context.h"

namespace introspect::nn {

enum class NormKind : uint8_t {
  kRms,       // Llama, Qwen, Mistral, Phi-3: rounded to the model's dtype, then times the weight
  kGemmaRms,  // Gemma: times the weight in float32, then rounded; the weight is 1 + the checkpoint's
  kLayer,     // GPT-2, GPT-NeoX: without the mean, and with a bias
};

/// A norm over the last dimension with its two hook points: the denominator [..., 1], and the input divided by it,
/// before the weight.
struct INTROSPECT_EXPORT Norm {
  torch::Tensor weight;  // [D]; float32 for kGemmaRms, whatever the model's dtype
  torch::Tensor bias;    // [D]; kLayer only
  double eps = 1e-6;
  NormKind kind = NormKind::kRms;
  hooks::Point scale_point = hooks::Point::kLn1Scale;
  hooks::Point normalized_point = hooks::Point::kLn1Normalized;

  /// x [..., D] -> [..., D].
  torch::Tensor forward(const torch::Tensor& x, const Context& ctx) const;

  /// The same without hook points.
  torch::Tensor apply(const torch::Tensor& x) const;

  int64_t numel() const { return weight.numel() + (bias.defined() ? bias.numel() : 0); }
  int64_t nbytes() const {
    return static_cast<int64_t>(weight.nbytes() + (bias.defined() ? bias.nbytes() : 0));
  }

  /// Calls f(name, tensor) for every tensor of a Norm or const Norm: "ln1.w" and "ln1.b" of "ln1".
  template <typename Self, typename F>
  static void for_each_tensor(Self& norm, const std::string& part, F&& f) {
    f(part + ".w", norm.weight);
    if (norm.bias.defined()) f(part + ".b", norm.bias);
  }
};

}  // namespace introspect::nn

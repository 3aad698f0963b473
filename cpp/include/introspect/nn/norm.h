#pragma once

#include <string>
#include <string_view>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/context.h"

namespace introspect::nn {

enum class NormKind : uint8_t {
  kRms,             // Llama, Qwen, Mistral, Phi-3: rounded to the model's dtype, then times the weight
  kRmsRoundedLast,  // OLMo 2 and 3, gpt-oss: times the weight in float32, then rounded
  kGemmaRms,        // Gemma: times the weight in float32, then rounded; the weight is 1 + the checkpoint's
  kLayer,           // GPT-2, GPT-NeoX: without the mean, and with a bias
  kNone,            // OLMo 2 and 3 where layers read the stream: x itself, and no hook points
};

/// A norm over the last dimension with its two hook points: the denominator [..., 1], and the input divided by it,
/// before the weight.
struct INTROSPECT_EXPORT Norm {
  torch::Tensor weight;  // [D]; float32 for kGemmaRms, whatever the model's dtype; undefined for kNone
  torch::Tensor bias;    // [D]; kLayer only
  double eps = 1e-6;
  NormKind kind = NormKind::kRms;
  hooks::Point scale_point = hooks::Point::kLn1Scale;
  hooks::Point normalized_point = hooks::Point::kLn1Normalized;

  /// x is [..., H, K], and its last two dimensions are normed as one of D = H * K: OLMo 2 and 3's queries and keys. The
  /// denominator is then shown as [..., H, 1], the same for every head.
  bool over_heads = false;

  /// x [..., D] -> [..., D].
  torch::Tensor forward(const torch::Tensor& x, const Context& ctx) const;

  /// The same without hook points.
  torch::Tensor apply(const torch::Tensor& x) const;

  bool is_none() const { return kind == NormKind::kNone; }
  int64_t numel() const { return is_none() ? 0 : weight.numel() + (bias.defined() ? bias.numel() : 0); }
  int64_t nbytes() const {
    return is_none() ? 0 : static_cast<int64_t>(weight.nbytes() + (bias.defined() ? bias.nbytes() : 0));
  }

  /// Calls f(name, tensor) for every tensor of a Norm or const Norm: "ln1.w" and "ln1.b" of "ln1".
  template <typename Self, typename F>
  static void for_each_tensor(Self& norm, std::string_view part, F&& f) {
    if (norm.is_none()) return;
    f(std::string(part) + ".w", norm.weight);
    if (norm.bias.defined()) f(std::string(part) + ".b", norm.bias);
  }
};

}  // namespace introspect::nn

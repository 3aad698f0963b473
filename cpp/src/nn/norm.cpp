#include "introspect/nn/norm.h"

#include "core/stages.h"
#include "introspect/ops/norm.h"

namespace introspect::nn {

namespace {

/// Of a norm over heads, the last two dimensions as one.
torch::Tensor joined(const Norm& norm, const torch::Tensor& x) {
  return norm.over_heads ? x.flatten(-2) : x;
}

torch::Tensor scale_of(const Norm& norm, const torch::Tensor& x) {
  if (norm.kind == NormKind::kLayer) return ops::layer_scale(x, norm.eps);
  const auto scale = ops::rms_scale(joined(norm, x), norm.eps);
  return norm.over_heads ? scale.unsqueeze(-1).expand({-1, -1, x.size(2), 1}) : scale;
}

torch::Tensor normalize(const Norm& norm, const torch::Tensor& x) {
  if (norm.kind == NormKind::kLayer) return ops::layer_normalize(x, norm.eps);
  return ops::rms_normalize(joined(norm, x), norm.eps).view(x.sizes());
}

/// x divided by a scale that somebody has changed, or whose gradient is asked for.
torch::Tensor divide(const Norm& norm, const torch::Tensor& x, const torch::Tensor& scale) {
  const auto wide = x.to(scale.scalar_type());
  const auto centred = norm.kind == NormKind::kLayer ? wide - wide.mean({-1}, /*keepdim=*/true) : wide;
  return (centred / scale).to(x.scalar_type());
}

torch::Tensor affine(const Norm& norm, const torch::Tensor& normalized) {
  const auto y = (norm.over_heads ? norm.weight.view({-1, normalized.size(-1)}) : norm.weight) * normalized;
  return (norm.bias.defined() ? y + norm.bias : y).to(normalized.scalar_type());
}

}  // namespace

torch::Tensor Norm::apply(const torch::Tensor& x) const {
  const InStage stage(Stage::kNorms);
  stage.count([&] { return StageWork{0, 2.0 * static_cast<double>(x.nbytes())}; });
  switch (kind) {
    case NormKind::kRms:
      return ops::rms_norm(joined(*this, x), weight, eps).view(x.sizes());
    case NormKind::kRmsRoundedLast: {
      const auto dtype = x.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
      return ops::rms_norm(joined(*this, x).to(dtype), weight.to(dtype), eps)
          .view(x.sizes())
          .to(x.scalar_type());
    }
    case NormKind::kNone:
      return x;
    case NormKind::kGemmaRms:
      return ops::gemma_rms_norm(x, weight, eps);
    case NormKind::kLayer:
      return ops::layer_norm(x, weight, bias, eps);
  }
  return {};
}

torch::Tensor Norm::forward(const torch::Tensor& x, const Context& ctx) const {
  if (is_none()) return x;
  if (!ctx.wants(scale_point) && !ctx.wants(normalized_point)) return apply(x);
  // What is only read leaves the result as it was, bit for bit; a gradient needs what is read to be on its way.
  const auto scale = scale_of(*this, x);
  const auto hooked_scale = ctx.hook(scale_point, scale);
  const bool same_scale = hooked_scale.is_same(scale) && !scale.requires_grad();
  const auto normalized = same_scale ? normalize(*this, x) : divide(*this, x, hooked_scale);
  const auto hooked = ctx.hook(normalized_point, normalized);
  return same_scale && hooked.is_same(normalized) ? apply(x) : affine(*this, hooked);
}

}  // namespace introspect::nn

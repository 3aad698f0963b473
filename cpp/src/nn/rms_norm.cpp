#include "introspect/nn/rms_norm.h"

#include "introspect/ops/norm.h"

namespace introspect::nn {

torch::Tensor RmsNorm::forward(const torch::Tensor& x_BTD, const Context& ctx) const {
  if (!ctx.wants(scale_point) && !ctx.wants(normalized_point)) return ops::rms_norm(x_BTD, weight, eps);
  const auto scale_BT1 = ctx.hook(scale_point, ops::rms_scale(x_BTD, eps));
  const auto normalized_BTD =
      ctx.hook(normalized_point, (x_BTD.to(scale_BT1.scalar_type()) / scale_BT1).to(x_BTD.scalar_type()));
  return weight * normalized_BTD;
}

}  // namespace introspect::nn

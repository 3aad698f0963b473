#include "introspect/nn/rms_norm.h"

#include "introspect/ops/norm.h"

namespace introspect::nn {

torch::Tensor RmsNorm::forward(const torch::Tensor& x_BTD, const Context& ctx) const {
  if (!ctx.wants(scale_point) && !ctx.wants(normalized_point)) return ops::rms_norm(x_BTD, weight, eps);
  const auto scale_BT1 = ops::rms_scale(x_BTD, eps);
  const auto hooked_BT1 = ctx.hook(scale_point, scale_BT1);
  // A scale that is only read leaves the result as it was, bit for bit.
  const auto normalized_BTD = hooked_BT1.is_same(scale_BT1)
                                  ? ops::rms_normalize(x_BTD, eps)
                                  : (x_BTD.to(hooked_BT1.scalar_type()) / hooked_BT1).to(x_BTD.scalar_type());
  return weight * ctx.hook(normalized_point, normalized_BTD);
}

}  // namespace introspect::nn

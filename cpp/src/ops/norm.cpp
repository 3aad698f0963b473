#include "introspect/ops/norm.h"

#include "introspect/core/check.h"

namespace introspect::ops {

torch::Tensor rms_normalize(const torch::Tensor& x, double eps) {
  const auto x32 = x.to(torch::kFloat32);
  const auto inverse_scale = at::rsqrt(x32.pow(2).mean({-1}, /*keepdim=*/true).add_(eps));
  return (x32 * inverse_scale).to(x.scalar_type());
}

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  check<ShapeError>(weight.dim() == 1 && x.dim() > 0 && weight.size(0) == x.size(-1),
                    "rms_norm: weight must be [", x.dim() > 0 ? x.size(-1) : 0, "], got ", weight.sizes());
  return weight * rms_normalize(x, eps);
}

torch::Tensor rms_scale(const torch::Tensor& x, double eps) {
  return x.to(torch::kFloat32).pow(2).mean({-1}, /*keepdim=*/true).add_(eps).sqrt();
}

}  // namespace introspect::ops

#include "introspect/ops/norm.h"

#include "introspect/core/check.h"

namespace introspect::ops {

torch::Tensor rms_normalize(const torch::Tensor& x, double eps) {
  const auto x32 = x.to(torch::kFloat32);
  const auto inverse_scale = at::rsqrt(x32.pow(2).mean({-1}, /*keepdim=*/true).add(eps));
  return (x32 * inverse_scale).to(x.scalar_type());
}

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  check<ShapeError>(weight.dim() == 1 && x.dim() > 0 && weight.size(0) == x.size(-1),
                    "rms_norm: weight must be [", x.dim() > 0 ? x.size(-1) : 0, "], got ", weight.sizes());
  return weight * rms_normalize(x, eps);
}

torch::Tensor gemma_rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  check<ShapeError>(weight.dim() == 1 && x.dim() > 0 && weight.size(0) == x.size(-1),
                    "gemma_rms_norm: weight must be [", x.dim() > 0 ? x.size(-1) : 0, "], got ",
                    weight.sizes());
  return (rms_normalize(x.to(torch::kFloat32), eps) * weight).to(x.scalar_type());
}

torch::Tensor layer_norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                         double eps) {
  return at::layer_norm(x, {x.size(-1)}, weight, bias, eps);
}

torch::Tensor layer_normalize(const torch::Tensor& x, double eps) {
  return at::layer_norm(x, {x.size(-1)}, {}, {}, eps);
}

torch::Tensor layer_scale(const torch::Tensor& x, double eps) {
  const auto wide = x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32);
  return wide.var({-1}, /*correction=*/0, /*keepdim=*/true).add(eps).sqrt();
}

torch::Tensor rms_scale(const torch::Tensor& x, double eps) {
  return x.to(torch::kFloat32).pow(2).mean({-1}, /*keepdim=*/true).add(eps).sqrt();
}

}  // namespace introspect::ops

#include "circuits/norms.h"

namespace introspect::circuits {

namespace {

bool centres(const nn::Norm& norm) {
  return norm.kind == nn::NormKind::kLayer;
}

/// One over the norm's denominator [..., 1], of an input that is already centred where the norm centres.
torch::Tensor inverse_of_centred(const nn::Norm& norm, const torch::Tensor& centred) {
  return centred.square().mean({-1}, /*keepdim=*/true).add(norm.eps).rsqrt();
}

torch::Tensor centred(const nn::Norm& norm, const torch::Tensor& x) {
  return centres(norm) ? x - x.mean({-1}, /*keepdim=*/true) : x;
}

}  // namespace

torch::Tensor normed(const nn::Norm& norm, const torch::Tensor& x) {
  if (x.scalar_type() != torch::kFloat64 || centres(norm) || norm.is_none()) return norm.apply(x);
  if (norm.over_heads) {
    auto flat = norm;
    flat.over_heads = false;
    return normed(flat, x.flatten(-2)).view(x.sizes());
  }
  return x * inverse_of_centred(norm, x) * norm.weight.to(x.scalar_type());
}

torch::Tensor normed_part(const nn::Norm& norm, const torch::Tensor& part, const torch::Tensor& whole) {
  return frozen_normed(norm, part, inverse_scale(norm, whole));
}

torch::Tensor inverse_scale(const nn::Norm& norm, const torch::Tensor& x) {
  if (norm.is_none()) return at::ones_like(x.narrow(-1, 0, 1));
  return inverse_of_centred(norm, centred(norm, x));
}

torch::Tensor frozen_normed(const nn::Norm& norm, const torch::Tensor& x, const torch::Tensor& inverse) {
  return norm.is_none() ? x : centred(norm, x) * inverse * norm.weight.to(x.scalar_type());
}

torch::Tensor frozen_gradient(const nn::Norm& norm, const torch::Tensor& y, const torch::Tensor& inverse) {
  return norm.is_none() ? y : centred(norm, y * (norm.weight.to(y.scalar_type()) * inverse));
}

torch::Tensor norm_gradient(const nn::Norm& norm, const torch::Tensor& x, const torch::Tensor& y) {
  if (norm.is_none()) return y.clone();
  const auto in = centred(norm, x);
  const auto scale = inverse_of_centred(norm, in);
  const auto unit = in * scale;
  auto g = y * norm.weight.to(y.scalar_type());
  const auto along = (g * unit).mean({-1}, /*keepdim=*/true);
  if (centres(norm)) g.sub_(g.mean({-1}, /*keepdim=*/true));
  return g.addcmul_(unit, along, -1).mul_(scale);
}

}  // namespace introspect::circuits

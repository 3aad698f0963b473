#pragma once

#include <torch/types.h>

#include "introspect/models/model.h"

// A norm whose division is held fixed is linear: what is left of it acts on what is written to a stream and on what
// reads it.

namespace introspect::analysis {

/// Float32, or float64 for float64: what sums are made in.
inline torch::Tensor wide(const torch::Tensor& x) {
  return x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32);
}

/// A norm without its division, on rows [..., D].
inline torch::Tensor undivided(const nn::Norm& norm, const torch::Tensor& x) {
  if (norm.is_none()) return x;
  const auto centred = norm.kind == nn::NormKind::kLayer ? x - x.mean({-1}, /*keepdim=*/true) : x;
  return centred * norm.weight.to(x.options());
}

/// The transpose of `undivided`, on columns [D, n]: what a projection after the norm is before it.
inline torch::Tensor undivided_transpose(const nn::Norm& norm, const torch::Tensor& P) {
  if (norm.is_none()) return P;
  const auto weighted = norm.weight.to(P.options()).unsqueeze(1) * P;
  return norm.kind == nn::NormKind::kLayer ? weighted - weighted.mean({0}, /*keepdim=*/true) : weighted;
}

/// What a norm divides rows [..., D] by, [..., 1], in the rows' own precision: models divide float64 rows by a
/// float32 root mean square, and sums that must be exact do not.
inline torch::Tensor wide_scale(const nn::Norm& norm, const torch::Tensor& x) {
  const auto rows = wide(x);
  if (norm.is_none()) return at::ones_like(rows.narrow(-1, 0, 1));
  const auto centred = norm.kind == nn::NormKind::kLayer ? rows - rows.mean({-1}, /*keepdim=*/true) : rows;
  return (centred.pow(2).mean({-1}, /*keepdim=*/true) + norm.eps).sqrt();
}

}  // namespace introspect::analysis

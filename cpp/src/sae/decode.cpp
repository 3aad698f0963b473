#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/ops/sparse_rows.h"
#include "introspect/sae/dictionary.h"

#include "core/dense.h"
#include "sae/arithmetic.h"

namespace introspect::sae {

namespace {

constexpr int64_t kSparseShare =
    8;  // fewer features than a part in so many: their rows are quicker than a product

/// Decoder norms to divide by: a row of zeros writes nothing, whatever it is divided by.
torch::Tensor divisors(const torch::Tensor& norms_F) {
  return at::where(norms_F > 0, norms_F, at::ones_like(norms_F));
}

bool wants_gradient(const torch::Tensor& f, const torch::Tensor& x, const DictionaryWeights& weights) {
  return at::GradMode::is_enabled() &&
         (f.requires_grad() || (x.defined() && x.requires_grad()) || weights.operands().requires_grad());
}

}  // namespace

torch::Tensor Dictionary::decode(const torch::Tensor& f, const torch::Tensor& x) const {
  check_dense<ShapeError>(f, "Dictionary: features");
  check<ShapeError>(f.dim() > 0 && f.size(-1) == d_sae() && f.is_floating_point(),
                    "Dictionary: features must be of a floating dtype and [.., ", d_sae(), "], got ",
                    f.scalar_type(), " ", f.sizes());
  check<std::invalid_argument>(!needs_input() || x.defined(),
                               "Dictionary: decode needs the input x, which its input norm or skip is of");
  return finish(decoded(f), x);
}

torch::Tensor Dictionary::decode(const SparseFeatures& f, const torch::Tensor& x_ND) const {
  check<ShapeError>(f.d_sae == d_sae(), "Dictionary: features must be of ", d_sae(), ", got ", f.d_sae);
  check<std::invalid_argument>(!needs_input() || x_ND.defined(),
                               "Dictionary: decode needs the input x, which its input norm or skip is of");
  const at::NoGradGuard no_grad;
  return finish(decoded(f), x_ND);
}

/// f W_dec [.., d_out] in float32 or float64.
torch::Tensor Dictionary::decoded(const torch::Tensor& f) const {
  if (f.is_cpu() && weights_.W_dec_FD.is_cpu() && !wants_gradient(f, {}, weights_)) {
    const auto sparse = SparseFeatures::of(f.reshape({-1, d_sae()}));
    if (sparse.indices.numel() * kSparseShare <= f.numel()) {
      auto shape = f.sizes().vec();
      shape.back() = d_out();
      return decoded(sparse).reshape(shape);
    }
  }
  const auto type = arithmetic(dtype());
  auto f_in = f.to(device(), type);
  if (config_.rank_by_decoder_norm) f_in = f_in / divisors(decoder_norms());
  return at::matmul(f_in, weights_.W_dec_FD.to(type));
}

/// f W_dec [N, d_out] in float32 or float64.
torch::Tensor Dictionary::decoded(const SparseFeatures& f) const {
  if (!weights_.W_dec_FD.is_cpu() || !f.values.is_cpu()) return decoded(f.dense());
  const auto type = arithmetic(dtype());
  ops::SparseRows rows{f.offsets, f.indices, f.values.to(type)};
  if (config_.rank_by_decoder_norm)
    rows.values = rows.values / divisors(decoder_norms()).index_select(0, f.indices);
  return ops::gather_decode(rows, weights_.W_dec_FD);
}

/// The rest of decoding y = f W_dec [.., d_out], which is in float32 or float64.
torch::Tensor Dictionary::finish(torch::Tensor y, const torch::Tensor& x) const {
  if (weights_.b_dec_D.defined()) y = y + weights_.b_dec_D;
  if (config_.input_norm == InputNorm::scale) y = y / config_.input_scale;
  if (needs_input()) {
    const auto in = input(x);
    if (config_.input_norm != InputNorm::scale && in.scale.defined()) y = y * in.scale;
    if (in.shift.defined()) y = y + in.shift;
    if (weights_.W_skip_DD.defined())
      y = y + at::linear(x.to(y.options()), weights_.W_skip_DD.to(y.scalar_type()));
  }
  return y.to(dtype());
}

torch::Tensor Dictionary::forward(const torch::Tensor& x) const {
  check_rows(x);
  if (!weights_.W_dec_FD.is_cpu() || wants_gradient(x, {}, weights_)) return finish(decoded(features(x)), x);
  auto shape = x.sizes().vec();
  shape.back() = d_out();
  const at::NoGradGuard no_grad;
  return finish(decoded(sparse_features(x.reshape({-1, d_in()}))).reshape(shape), x);
}

}  // namespace introspect::sae

#include "introspect/sae/whitening.h"

#include <ATen/ATen.h>

#include "introspect/core/check.h"

namespace introspect::sae {

void WhiteningStatistics::add(const torch::Tensor& x_ND) {
  check<ShapeError>(x_ND.dim() == 2 && (!sum_D.defined() || sum_D.size(0) == x_ND.size(1)),
                    "WhiteningStatistics: rows must be [N, ", sum_D.defined() ? sum_D.size(0) : 0, "], got ",
                    x_ND.sizes());
  const auto x = x_ND.detach().to(torch::kFloat64);
  if (!sum_D.defined()) {
    sum_D = at::zeros({x.size(1)}, x.options());
    outer_DD = at::zeros({x.size(1), x.size(1)}, x.options());
  }
  sum_D.add_(x.sum(0));
  outer_DD.addmm_(x.t(), x);
  rows += x.size(0);
}

Whitening WhiteningStatistics::whitening(double eps) const {
  const auto D = sum_D.defined() ? sum_D.size(0) : 0;
  check<std::invalid_argument>(rows > D, "covariance whitening: more rows than their width, ", D,
                               ", are needed to measure, got ", rows);
  const auto n = static_cast<double>(rows);
  const auto mean_D = sum_D / n;
  const auto covariance_DD = (outer_DD - at::outer(mean_D, mean_D) * n) / (n - 1);
  check<std::invalid_argument>(at::isfinite(covariance_DD).all().item<bool>(),
                               "covariance whitening: the rows that were measured are not finite");
  const auto [values_D, vectors_DD] = at::linalg_eigh(covariance_DD);
  const auto deviation_D = (values_D.clamp_min(0) + eps).sqrt();
  return {mean_D, vectors_DD / deviation_D, deviation_D.unsqueeze(1) * vectors_DD.t()};
}

Dictionary fold_whitening(const Dictionary& dictionary, const Whitening& whitening) {
  const auto architecture = dictionary.config().architecture;
  check<ConfigError>(architecture != Architecture::matching_pursuit,
                     "fold_whitening: the rows of matching pursuit are of length 1 and encode too");
  check<ConfigError>(dictionary.config().input_norm == InputNorm::none,
                     "fold_whitening: whitened inputs have no other input norm, got ",
                     to_string(dictionary.config().input_norm));
  const auto D = dictionary.d_in();
  check<ConfigError>(dictionary.d_out() == D && !dictionary.weights().W_skip_DD.defined(),
                     "fold_whitening: a transcoder's inputs and outputs have no whitening in common");
  for (const auto& [name, tensor] :
       {std::pair{"matrix", whitening.matrix_DD}, {"inverse", whitening.inverse_DD}})
    check<ShapeError>(tensor.sizes() == at::IntArrayRef{D, D}, "fold_whitening: ", name, " must be [", D,
                      ", ", D, "], got ", tensor.sizes());
  check<ShapeError>(whitening.mean_D.sizes() == at::IntArrayRef{D}, "fold_whitening: mean must be [", D,
                    "], got ", whitening.mean_D.sizes());

  const auto unranked =
      dictionary.config().rank_by_decoder_norm ? dictionary.fold_decoder_norm() : dictionary;
  auto w = unranked.weights();
  const auto type = w.W_dec_FD.scalar_type();
  const auto wide = [&](const torch::Tensor& t) { return t.to(w.W_dec_FD.device(), torch::kFloat64); };
  const auto mean_D = wide(whitening.mean_D), matrix_DD = wide(whitening.matrix_DD),
             inverse_DD = wide(whitening.inverse_DD);
  // (x - m) M - b = (x - m - b M^-1) M goes in, z M^-1 + m comes out.
  const auto W_enc_FD = at::mm(wide(w.W_enc_FD), matrix_DD.t());
  if (!unranked.config().subtract_b_dec) {
    const auto shift_F = at::mv(W_enc_FD, mean_D);
    if (architecture == Architecture::gated) {
      w.b_gate_F = (wide(w.b_gate_F) - shift_F).to(type);
      w.b_mag_F = (wide(w.b_mag_F) - shift_F * wide(w.r_mag_F).exp()).to(type);
    } else {
      w.b_enc_F = (w.b_enc_F.defined() ? wide(w.b_enc_F) - shift_F : -shift_F).to(type);
    }
  }
  w.W_enc_FD = W_enc_FD.to(type);
  w.b_dec_D =
      (w.b_dec_D.defined() ? at::mv(inverse_DD.t(), wide(w.b_dec_D)) + mean_D : mean_D.clone()).to(type);
  w.W_dec_FD = at::mm(wide(w.W_dec_FD), inverse_DD).to(type);
  return {unranked.config(), w, unranked.origin()};
}

}  // namespace introspect::sae

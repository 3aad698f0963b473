#include <algorithm>

#include <ATen/ATen.h>

#include "sae/training/pass.h"

// TopK, AbsTopK and BatchTopK: f = p at the places that are chosen, x_hat = f W_dec + b_dec, L = SSE + aux.
// Where p n is ranked the features are p n and the decoder's rows W_i / n_i: x_hat is the same, and so are all gradients.
// Gao et al. 2024, arXiv:2406.04093; 2510.00404; Bussmann et al. 2024, arXiv:2412.06410; defaults as SAELens 6.

namespace introspect::sae::training {

Entries::Choice choice_of(Pass& pass) {
  const auto& o = pass.options;
  const bool of_batch = o.objective == Objective::batchtopk || o.objective == Objective::matryoshka;
  return {.k = static_cast<int64_t>(of_batch ? o.k * static_cast<double>(pass.n_rows()) : o.k),
          .of_batch = of_batch,
          .absolute = o.objective == Objective::abstopk,
          .scale_F = o.rank_by_decoder_norm ? pass.norms() : torch::Tensor{}};
}

void fit_by_dead(Pass& pass, const torch::Tensor& ids, const torch::Tensor& e_ND) {
  const auto& o = pass.options;
  if (o.aux == AuxLoss::none || ids.numel() == 0) return;
  const auto n_dead = ids.size(0);
  const auto k_aux = o.k_aux > 0 ? o.k_aux : std::max<int64_t>(1, pass.x_ND.size(1) / 2);
  const auto W_enc = pass.w.W_enc_FD.index_select(0, ids), W_dec = pass.w.W_dec_FD.index_select(0, ids);
  const auto p = at::addmm(pass.w.b_enc_F.index_select(0, ids), pass.encoded(), W_enc.t());
  const bool absolute = o.objective == Objective::abstopk;

  // The k_aux largest p, negative ones among them where that many are dead; relu leaves those out.
  const bool normalised = o.aux == AuxLoss::normalised;
  auto rank = o.rank_by_decoder_norm ? p * pass.norms().index_select(0, ids) : p;
  if (absolute) rank = rank.abs();
  auto chosen = k_aux >= n_dead
                    ? at::ones_like(p)
                    : at::zeros_like(p).scatter_(1, std::get<1>(rank.topk(k_aux, -1, true, false)), 1);
  if (normalised && !absolute) chosen.mul_((p > 0).to(p.scalar_type()));
  const auto f = p * chosen;
  const auto r = at::mm(f, W_dec).sub_(e_ND);
  double scale = o.aux_coefficient;
  if (normalised) {
    const auto variance = (e_ND - e_ND.mean(0)).square_().sum().item<double>() * pass.per_row();
    scale = variance > 0 ? scale / variance : 0;
  } else {
    scale *= std::min(static_cast<double>(n_dead) / static_cast<double>(k_aux), 1.0);
  }
  pass.aux_loss += scale * at::dot(r.reshape({-1}), r.reshape({-1})).item<double>() * pass.per_row();
  const auto g_ND = r * (2 * scale * pass.per_row());
  const auto gp = at::mm(g_ND, W_dec.t()).mul_(chosen);
  Pass::add_rows(pass.gradient.W_dec_FD, ids, at::mm(f.t(), g_ND), pass.w.W_dec_FD);
  Pass::add_rows(pass.gradient.W_enc_FD, ids, at::mm(gp.t(), pass.encoded()), pass.w.W_enc_FD);
  const auto sum = gp.sum(0);
  Pass::add_rows(pass.gradient.b_enc_F, ids, sum, pass.w.b_enc_F);
  if (o.subtract_b_dec) Pass::add(pass.gradient.b_dec_D, -at::mv(W_enc.t(), sum));
}

void topk(Pass& pass) {
  const auto choice = choice_of(pass);
  const auto at = Entries::largest(pass.encoded(), pass.w.W_enc_FD, pass.w.b_enc_F, choice);
  const auto gf = pass.reconstruct(at, at.p());
  pass.encode_backward(at, at.masked(gf));
  if (choice.of_batch) note_least_chosen(pass, at, choice);
  fit_by_dead(pass, pass.dead, pass.residual_ND);
}

void note_least_chosen(Pass& pass, const Entries& at, const Entries::Choice& choice) {
  const auto ranked = choice.scale_F.defined() ? at.p() * at.by_feature(choice.scale_F) : at.p();
  const auto positive = ranked.masked_select(ranked > 0);
  pass.has_chosen = positive.numel() > 0;
  if (pass.has_chosen) pass.least_chosen = positive.min().item<double>();
}

}  // namespace introspect::sae::training

#include <ATen/ATen.h>

#include "sae/training/pass.h"

// f = p H(p - t), L = SSE + l0 S + c sum relu(t - p) n, S = L0, sum tanh(a f n) or 2 / T (L0 - T)^2.
// With K the rectangle of width e around t, 1 / e high: dH/dt = -K and df/dt = -t K are estimates; with ste_to_input
// dH/dp = K and df/dp = H + t K too, else 0 and H.
// Rajamanoharan et al. 2024, arXiv:2407.14435 (which trains log t; t itself moves by as much as other weights);
// Anthropic, Circuits Update January 2025 (tanh, c, ste_to_input); Gemma Scope 2 (quadratic). As SAELens 6.

namespace introspect::sae::training {
namespace {

/// c sum relu(t - p) n of features that are dead, or of all.
void pull_up(Pass& pass, const torch::Tensor& p_NF) {
  const auto& o = pass.options;
  const auto& w = pass.w;
  if (o.pre_act_coefficient == 0 || (!o.pre_act_of_all && pass.dead.numel() == 0)) return;
  const auto ids = o.pre_act_of_all ? at::arange(w.W_dec_FD.size(0), pass.dead.options()) : pass.dead;
  const auto n = pass.norms().index_select(0, ids);
  const auto below = at::relu(w.threshold_F.index_select(0, ids) - p_NF.index_select(1, ids));
  const auto is_below = (below > 0).to(below.scalar_type());
  const auto c = o.pre_act_coefficient * pass.per_row();
  pass.sparsity_loss += c * at::mv(below, n).sum().item<double>();
  const auto gp = is_below * (n * -c);
  const auto sum = gp.sum(0);
  Pass::add_rows(pass.gradient.threshold_F, ids, -sum, w.threshold_F);
  Pass::add_rows(pass.gradient.W_enc_FD, ids, at::mm(gp.t(), pass.encoded()), w.W_enc_FD);
  Pass::add_rows(pass.gradient.b_enc_F, ids, sum, w.b_enc_F);
  if (o.subtract_b_dec) Pass::add(pass.gradient.b_dec_D, -at::mv(w.W_enc_FD.index_select(0, ids).t(), sum));
  pass.norms_backward(at::zeros_like(pass.norms()).index_add_(0, ids, below.sum(0) * c));
}

}  // namespace

void jumprelu(Pass& pass) {
  const auto& o = pass.options;
  const auto& w = pass.w;
  const auto p_NF = pass.pre_activations();
  const auto at = Entries::above(p_NF, w.threshold_F - o.bandwidth / 2);
  const auto t = at.by_feature(w.threshold_F);
  const auto above = at.p() - t;
  const auto open = (above > 0).to(t.scalar_type());
  const auto K = (above.abs() < o.bandwidth / 2).to(t.scalar_type()).mul_(1 / o.bandwidth);
  const auto f = at.p() * open;
  auto gf = pass.reconstruct(at, f);

  const auto l0 = pass.coefficient * pass.per_row();
  torch::Tensor gH;  // of the loss by H
  switch (o.sparsity_loss) {
    case SparsityLoss::step:
      pass.sparsity_loss = l0 * open.sum().item<double>();
      gH = at::full({1}, l0, t.options());
      break;
    case SparsityLoss::quadratic: {
      const auto over_N = at.sum_of_rows(open) - o.target_l0;
      pass.sparsity_loss = l0 * 2 / o.target_l0 * over_N.square().sum().item<double>();
      gH = at.by_row(over_N * (l0 * 4 / o.target_l0));
      break;
    }
    case SparsityLoss::tanh: {
      const auto n = at.by_feature(pass.norms());
      const auto h = at::tanh(f * n * o.tanh_scale);
      pass.sparsity_loss = l0 * h.sum().item<double>();
      const auto gu = (1 - h.square()).mul_(l0 * o.tanh_scale);
      gf = gf + gu * n;
      pass.norms_backward(at.sum_of_features(gu * f));
      break;
    }
  }
  auto g_step = gf * t;  // by H, where it is estimated
  if (gH.defined()) g_step = g_step + gH;
  g_step = g_step * K;
  pass.gradient.threshold_F = -at.sum_of_features(g_step);
  pass.encode_backward(at, o.ste_to_input ? gf * open + g_step : gf * open);
  pull_up(pass, p_NF);
}

}  // namespace introspect::sae::training

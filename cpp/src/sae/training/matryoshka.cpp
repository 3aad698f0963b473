#include <ATen/ATen.h>

#include "sae/training/pass.h"

// Matryoshka BatchTopK: features are those of BatchTopK, and L = sum over widths m of SSE(x, f[:m] W_dec[:m] + b_dec), + aux.
// A feature below m is part of every level from m on: its gradient is that of the sum of their errors.
// Bussmann et al. 2025, arXiv:2503.17547; as SAELens 6.

namespace introspect::sae::training {

void matryoshka(Pass& pass) {
  const auto& o = pass.options;
  const auto F = pass.w.W_dec_FD.size(0);
  auto widths = o.matryoshka_widths;
  if (widths.empty() || widths.back() != F) widths.push_back(F);
  const auto choice = choice_of(pass);
  const auto at = Entries::largest(pass.encoded(), pass.w.W_enc_FD, pass.w.b_enc_F, choice);
  pass.count_fired(at, at.p());
  note_least_chosen(pass, at, choice);

  std::vector<Entries> levels;
  std::vector<torch::Tensor> errors, gradients;  // of each level: x_hat - y [N, D], and the gradient by it
  auto decoded_ND = pass.offset();
  int64_t first = 0;
  for (const auto width : widths) {
    levels.push_back(at.within(first, width));
    decoded_ND =
        levels.back().decode(levels.back().p(), pass.w.W_dec_FD.narrow(0, first, width - first)) + decoded_ND;
    errors.push_back(decoded_ND - pass.y_ND);
    gradients.push_back(pass.squared_error(errors.back(), pass.mse));
    first = width;
  }
  pass.residual_ND = -errors.back();

  pass.gradient.W_dec_FD = at::zeros_like(pass.w.W_dec_FD);
  torch::Tensor g_ND;
  pass.gradient.W_enc_FD = at::zeros_like(pass.w.W_enc_FD);
  auto sum_F = at::zeros_like(pass.w.b_enc_F);
  for (size_t level = widths.size(); level-- > 0;) {
    first = level == 0 ? 0 : widths[level - 1];
    const auto n = widths[level] - first;
    const auto& of_level = levels[level];
    g_ND = g_ND.defined() ? g_ND + gradients[level] : gradients[level];
    const auto gp = of_level.masked(of_level.dots(g_ND, pass.w.W_dec_FD.narrow(0, first, n)));
    pass.gradient.W_dec_FD.narrow(0, first, n).copy_(of_level.outer(of_level.p(), g_ND));
    pass.gradient.W_enc_FD.narrow(0, first, n).copy_(of_level.outer(gp, pass.encoded()));
    sum_F.narrow(0, first, n).copy_(of_level.sum_of_features(gp));
  }
  pass.offset_backward(g_ND);
  Pass::add(pass.gradient.b_enc_F, sum_F);
  if (o.subtract_b_dec) Pass::add(pass.gradient.b_dec_D, -at::mv(pass.w.W_enc_FD.t(), sum_F));

  if (!o.matryoshka_aux) return fit_by_dead(pass, pass.dead, pass.residual_ND);
  first = 0;
  for (size_t level = 0; level < widths.size(); ++level) {
    const auto of_level = pass.dead.masked_select((pass.dead >= first) & (pass.dead < widths[level]));
    fit_by_dead(pass, of_level, -errors[level]);
    first = widths[level];
  }
}

}  // namespace introspect::sae::training

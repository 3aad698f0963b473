#include <ATen/ATen.h>

#include "sae/training/pass.h"

// q = x W_enc^T, gate = q + b_gate, f = H(gate) relu(e^r_mag q + b_mag), x_hat = f W_dec + b_dec,
// L = SSE(x_hat) + l1 sum relu(gate) n + SSE(relu(gate) W_dec + b_dec).
// Rajamanoharan et al. 2024, arXiv:2404.16014, whose last term holds W_dec and b_dec fixed (gated_detach); SAELens does not.

namespace introspect::sae::training {

void gated(Pass& pass) {
  const auto& o = pass.options;
  const auto& w = pass.w;
  const auto q_NF = at::linear(pass.encoded(), w.W_enc_FD);
  const auto at = Entries::above(q_NF, -w.b_gate_F);
  const auto& q = at.p();
  const auto gate = at::relu(q + at.by_feature(w.b_gate_F));
  const auto open = (gate > 0).to(q.scalar_type());
  const auto scale = at.by_feature(w.r_mag_F.exp());
  const auto f = at::relu(q * scale + at.by_feature(w.b_mag_F)).mul_(open);

  const auto g_magnitude = pass.reconstruct(at, f) * (f > 0).to(q.scalar_type());
  pass.gradient.b_mag_F = at.sum_of_features(g_magnitude);
  pass.gradient.r_mag_F = at.sum_of_features(g_magnitude * q) * w.r_mag_F.exp();

  const auto r_ND = (at.decode(gate, w.W_dec_FD) + pass.offset()).sub_(pass.y_ND);
  const auto g_ND = pass.squared_error(r_ND, pass.aux_loss);
  if (!o.gated_detach) {
    pass.offset_backward(g_ND);
    Pass::add(pass.gradient.W_dec_FD, at.outer(gate, g_ND));
  }
  auto g_gate = at.dots(g_ND, w.W_dec_FD);
  pass.sparsity_loss =
      pass.coefficient * penalise(pass, at, gate, {o.l1_by_decoder_norm, 1, true}, pass.coefficient, &g_gate);
  g_gate = g_gate * open;
  pass.gradient.b_gate_F = at.sum_of_features(g_gate);
  pass.encode_backward(at, g_gate + g_magnitude * scale);
}

}  // namespace introspect::sae::training

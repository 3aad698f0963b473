#include "sae/training/pass.h"

#include <ATen/ATen.h>

namespace introspect::sae::training {

void Pass::add(torch::Tensor& to, const torch::Tensor& what) {
  to = to.defined() ? to.add_(what) : what;
}

void Pass::add_rows(torch::Tensor& to, const torch::Tensor& ids, const torch::Tensor& what,
                    const torch::Tensor& like) {
  if (!to.defined()) to = at::zeros_like(like);
  to.index_add_(0, ids, what);
}

const torch::Tensor& Pass::encoded() {
  if (!encoded_ND_.defined()) encoded_ND_ = options.subtract_b_dec ? x_ND - w.b_dec_D : x_ND;
  return encoded_ND_;
}

torch::Tensor Pass::pre_activations() {
  return at::linear(encoded(), w.W_enc_FD, w.b_enc_F);
}

const torch::Tensor& Pass::norms() {
  if (norms_F_.defined()) return norms_F_;
  int64_t first = 0;
  for (const auto width : sites) {
    const auto of_site = w.W_dec_FD.narrow(1, first, width).norm(2, -1);
    norms_F_ = norms_F_.defined() ? norms_F_ + of_site : of_site;
    first += width;
  }
  return norms_F_;
}

void Pass::norms_backward(const torch::Tensor& gn_F) {
  int64_t first = 0;
  for (const auto width : sites) {
    const auto W = w.W_dec_FD.narrow(1, first, width);
    const auto n = sites.size() == 1 ? norms() : W.norm(2, -1);
    const auto g = W * (gn_F / n.clamp_min(1e-30)).unsqueeze(1);
    if (sites.size() == 1) {
      add(gradient.W_dec_FD, g);
    } else {
      if (!gradient.W_dec_FD.defined()) gradient.W_dec_FD = at::zeros_like(w.W_dec_FD);
      gradient.W_dec_FD.narrow(1, first, width).add_(g);
    }
    first += width;
  }
}

void Pass::count_fired(const Entries& at, const torch::Tensor& f) {
  const auto fired = at.sum_of_features((f != 0).to(f.scalar_type())).to(torch::kFloat64);
  fired_F = fired_F.defined() ? fired_F + fired : fired;
}

torch::Tensor Pass::offset() {
  return options.skip ? at::addmm(w.b_dec_D, x_ND, w.W_skip_DD.t()) : w.b_dec_D;
}

void Pass::offset_backward(const torch::Tensor& g_ND) {
  add(gradient.b_dec_D, g_ND.sum(0));
  if (options.skip) add(gradient.W_skip_DD, at::mm(g_ND.t(), x_ND));
}

torch::Tensor Pass::squared_error(const torch::Tensor& r_ND, double& loss) {
  const auto weighted = weight_N.defined() ? r_ND * weight_N.unsqueeze(1) : r_ND;
  loss += at::dot(weighted.reshape({-1}), r_ND.reshape({-1})).item<double>() * per_row();
  return weighted * (2 * per_row());
}

torch::Tensor Pass::reconstruct(const Entries& at, const torch::Tensor& f) {
  count_fired(at, f);
  if (shared) {
    const auto g_ND = shared(*this, at.decode(f, w.W_dec_FD));
    add(gradient.W_dec_FD, at.outer(f, g_ND));
    return at.dots(g_ND, w.W_dec_FD);
  }
  residual_ND = (at.decode(f, w.W_dec_FD) + offset()).sub_(y_ND);
  const auto g_ND = squared_error(residual_ND, mse);
  residual_ND.neg_();
  offset_backward(g_ND);
  add(gradient.W_dec_FD, at.outer(f, g_ND));
  return at.dots(g_ND, w.W_dec_FD);
}

void Pass::encode_backward(const Entries& at, const torch::Tensor& gp) {
  add(gradient.W_enc_FD, at.outer(gp, encoded()));
  const auto sum_F = at.sum_of_features(gp);
  if (w.b_enc_F.defined()) add(gradient.b_enc_F, sum_F.clone());
  if (options.subtract_b_dec) add(gradient.b_dec_D, -at::mv(w.W_enc_FD.t(), sum_F));
}

}  // namespace introspect::sae::training

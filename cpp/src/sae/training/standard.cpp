#include <ATen/ATen.h>

#include "sae/training/pass.h"

// f = relu(p), L = SSE + l1 (sum_i (f_i n_i)^q)^(1/q).
// q = 1 with n: Anthropic, Circuits Update April 2024; q = 1 without n and rows of W_dec of length 1: Bricken et al. 2023.

namespace introspect::sae::training {

double penalise(Pass& pass, const Entries& at, const torch::Tensor& f, const Penalty& penalty,
                double coefficient, torch::Tensor* gf) {
  const auto q = penalty.q, per_row = pass.per_row();
  const auto n = penalty.by_norm ? at.by_feature(pass.norms()) : torch::Tensor{};
  const auto u = n.defined() ? f * n : f;
  const auto active = f > 0;
  double loss = 0;
  torch::Tensor gu;
  if (q == 1) {
    loss = u.sum().item<double>() * per_row;
    gu = active.to(f.scalar_type()).mul_(coefficient * per_row);
  } else {
    const auto safe = at::where(active, u, at::ones_like(u));
    const auto sum_N = at.sum_of_rows(at::where(active, safe.pow(q), at::zeros_like(u)));
    const auto some_N = sum_N > 0;
    const auto safe_N = at::where(some_N, sum_N, at::ones_like(sum_N));
    loss = (penalty.root ? at::where(some_N, safe_N.pow(1 / q), at::zeros_like(sum_N)) : sum_N)
               .sum()
               .item<double>() *
           per_row;
    gu = active.to(f.scalar_type()).mul_(safe.pow(q - 1)).mul_(coefficient * per_row);
    gu = penalty.root ? gu * at.by_row(safe_N.pow(1 / q - 1)) : gu * q;
  }
  if (gf == nullptr) return loss;
  *gf = *gf + (n.defined() ? gu * n : gu);
  if (n.defined()) pass.norms_backward(at.sum_of_features(gu * f));
  return loss;
}

void standard(Pass& pass) {
  const auto& o = pass.options;
  const auto p_NF = pass.pre_activations();
  const auto at = Entries::above(p_NF, at::zeros({p_NF.size(1)}, p_NF.options()));
  const auto f = at::relu(at.p());
  auto gf = pass.reconstruct(at, f);
  pass.sparsity_loss =
      pass.coefficient * penalise(pass, at, f, {o.l1_by_decoder_norm, o.lp, true}, pass.coefficient, &gf);
  pass.encode_backward(at, gf * (f > 0).to(gf.scalar_type()));
}

}  // namespace introspect::sae::training

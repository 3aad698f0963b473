#include <ATen/ATen.h>

#include "sae/training/pass.h"

// r_1 = x - b_dec; i_t = argmax_i W_i . r_t, v_t = relu(W_i . r_t), r_{t+1} = r_t - v_t W_i; f_i = sum of its v_t, L = SSE.
// A row ends when its rest is shorter than residual_threshold or a feature comes again (and counts), at the latest after k.
// The gradient goes through every v_t and r_t. Rows of W_dec have length 1, and encode too.
// Costa et al. 2025, arXiv:2506.03093; as SAELens 6.

namespace introspect::sae::training {
namespace {

struct Pick {
  torch::Tensor i_N, v_N;  // v 0 of rows that have ended
  torch::Tensor rest_ND;   // before it
};

}  // namespace

void matching_pursuit(Pass& pass) {
  const auto& W = pass.w.W_dec_FD;
  const auto N = pass.n_rows();
  std::vector<Pick> picks;
  auto rest_ND = pass.encoded();
  auto f_NF = at::zeros({N, W.size(0)}, W.options());
  auto goes_on_N = at::ones({N}, W.options().dtype(torch::kBool));
  for (int64_t t = 0; t < static_cast<int64_t>(pass.options.k); ++t) {
    const auto i_N = std::get<1>(at::mm(rest_ND, W.t()).max(1));
    const auto W_ND = W.index_select(0, i_N);
    const auto v_N = at::relu((rest_ND * W_ND).sum(1)).mul_(goes_on_N);
    const auto was_N = f_NF.gather(1, i_N.unsqueeze(1)).squeeze(1);
    f_NF.scatter_add_(1, i_N.unsqueeze(1), v_N.unsqueeze(1));
    picks.push_back({i_N, v_N, rest_ND});
    rest_ND = rest_ND - v_N.unsqueeze(1) * W_ND;
    goes_on_N =
        goes_on_N & (was_N == 0) & (v_N > 0) & (rest_ND.norm(2, 1) >= pass.options.residual_threshold);
    if (!goes_on_N.any().item<bool>()) break;
  }

  // By r_t and W_i, from the last pick to the first: g of x_hat, which has each v_t W_i, and a of r_{t+1}, which lacks it.
  pass.count_fired(Entries::all(f_NF), f_NF);
  pass.residual_ND = (at::mm(f_NF, W) + pass.offset()).sub_(pass.y_ND);
  const auto g_ND = pass.squared_error(pass.residual_ND, pass.mse);
  pass.residual_ND.neg_();
  pass.offset_backward(g_ND);
  pass.gradient.W_dec_FD = at::zeros_like(W);
  auto a_ND = at::zeros_like(g_ND);
  for (auto pick = picks.rbegin(); pick != picks.rend(); ++pick) {
    const auto W_ND = W.index_select(0, pick->i_N);
    const auto by_pick_ND = g_ND - a_ND;  // of v_t W_i
    const auto gv_N1 = ((by_pick_ND * W_ND).sum(1) * (pick->v_N > 0)).unsqueeze(1);
    pass.gradient.W_dec_FD.index_add_(0, pick->i_N,
                                      pick->v_N.unsqueeze(1) * by_pick_ND + gv_N1 * pick->rest_ND);
    a_ND = a_ND + gv_N1 * W_ND;
  }
  pass.gradient.b_dec_D.sub_(a_ND.sum(0));
}

}  // namespace introspect::sae::training

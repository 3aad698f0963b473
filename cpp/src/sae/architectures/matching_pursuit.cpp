#include "sae/architectures/architectures.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

// r = x, f = 0; at most k times: i = argmax_j r . W_j,  v = max(r . W_i, 0),  f_i += v,  r -= v W_i
// A row ends where |r| is below the threshold, v is 0, or i was chosen before.
//
// Costa et al. 2025, arXiv:2506.03093, as SAELens has it. The rows W_i are of length 1.
namespace introspect::sae::architectures {

namespace {

constexpr int64_t kRows = 512;  // [rows, F] of them at a time

}  // namespace

torch::Tensor matching_pursuit(const torch::Tensor& x_ND, const torch::Tensor& W_FD, int64_t k,
                               double residual_threshold) {
  auto rest_ND = x_ND;
  auto f_NF = at::zeros({x_ND.size(0), W_FD.size(0)}, x_ND.options());
  auto goes_on_N = at::ones({x_ND.size(0)}, x_ND.options().dtype(torch::kBool));
  for (int64_t step = 0; step < k; ++step) {
    goes_on_N = goes_on_N & ~(rest_ND.norm(2, -1) < residual_threshold);
    const auto [best_N, i_N] = at::relu(at::matmul(rest_ND, W_FD.t())).max(-1);
    const auto was_N = f_NF.detach().gather(1, i_N.unsqueeze(1)).squeeze(1);
    goes_on_N = goes_on_N & ~(best_N <= 0) & (was_N == 0);  // NaN goes on, so that it shows
    if (!goes_on_N.any().item<bool>()) break;
    const auto v_N1 = (best_N * goes_on_N.to(best_N.scalar_type())).unsqueeze(1);
    f_NF = f_NF.scatter_add(1, i_N.unsqueeze(1), v_N1);
    rest_ND = rest_ND - v_N1 * W_FD.index_select(0, i_N);
  }
  return f_NF;
}

ops::SparseRows matching_pursuit_rows(const torch::Tensor& x_ND, const torch::Tensor& W_FD, int64_t k,
                                      double residual_threshold) {
  const int64_t N = x_ND.size(0);
  std::vector<torch::Tensor> counts{at::zeros({1}, torch::kInt64)}, indices, values;
  for (int64_t first = 0; first < N; first += kRows) {
    const auto x = x_ND.narrow(0, first, std::min(kRows, N - first));
    const auto f_NF = matching_pursuit(x, W_FD, k, residual_threshold);
    const auto at_N2 = f_NF.nonzero();
    counts.push_back((f_NF != 0).sum(-1));
    indices.push_back(at_N2.select(1, 1));
    values.push_back(f_NF.masked_select(f_NF != 0));
  }
  if (indices.empty()) return {counts[0], at::empty({0}, torch::kInt64), at::empty({0}, x_ND.options())};
  return {at::cat(counts).cumsum(0), at::cat(indices).contiguous(), at::cat(values)};
}

}  // namespace introspect::sae::architectures

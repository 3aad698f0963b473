#include "sae/architectures/architectures.h"

#include <algorithm>
#include <map>
#include <vector>

#include <ATen/ATen.h>

// r = x, f = 0; at most k times: i = argmax_j r . W_j,  v = max(r . W_i, 0),  f_i += v,  r -= v W_i
// A row ends with the step that leaves |r| below the threshold, that adds nothing, or that takes a feature again.
//
// Costa et al. 2025, arXiv:2506.03093; the end as in SAELens 6 (matching_pursuit_sae.py). The rows W_i are of length 1.
namespace introspect::sae::architectures {

torch::Tensor matching_pursuit(const torch::Tensor& x_ND, const torch::Tensor& W_FD, int64_t k,
                               double residual_threshold) {
  auto rest_ND = x_ND;
  auto f_NF = at::zeros({x_ND.size(0), W_FD.size(0)}, x_ND.options());
  auto goes_on_N = at::ones({x_ND.size(0)}, x_ND.options().dtype(torch::kBool));
  for (int64_t step = 0; step < k && goes_on_N.any().item<bool>(); ++step) {
    const auto i_N = [&] {
      const at::NoGradGuard no_grad;
      return at::matmul(rest_ND, W_FD.t()).argmax(-1);
    }();
    const auto W_ND = W_FD.index_select(0, i_N);
    const auto v_N = at::where(goes_on_N, at::relu((rest_ND * W_ND).sum(-1)), at::zeros({}, x_ND.options()));
    const auto was_N = f_NF.detach().gather(1, i_N.unsqueeze(1)).squeeze(1);
    f_NF = f_NF.scatter_add(1, i_N.unsqueeze(1), v_N.unsqueeze(1));
    rest_ND = rest_ND - v_N.unsqueeze(1) * W_ND;
    goes_on_N = goes_on_N & (v_N != 0) & (was_N == 0) & ~(rest_ND.detach().norm(2, -1) < residual_threshold);
  }
  return f_NF;
}

ops::SparseRows matching_pursuit_rows(const torch::Tensor& x_ND, const torch::Tensor& W_FD, int64_t k,
                                      double residual_threshold) {
  std::vector<std::map<int64_t, double>> f(static_cast<size_t>(x_ND.size(0)));
  auto rest_ND = x_ND;
  std::vector<int64_t> rows(f.size());  // those that go on: rest_ND is theirs
  for (size_t n = 0; n < rows.size(); ++n) rows[n] = static_cast<int64_t>(n);
  for (int64_t step = 0; step < k && !rows.empty(); ++step) {
    const auto best = ops::topk_rows(rest_ND, {W_FD}, 1);
    const auto found_N = best.offsets.diff() > 0;
    const auto i_N = at::zeros(found_N.sizes(), torch::kInt64).masked_scatter_(found_N, best.indices);
    const auto v_N = at::zeros(found_N.sizes(), best.values.options()).masked_scatter_(found_N, best.values);
    rest_ND = rest_ND - v_N.unsqueeze(1) * W_FD.index_select(0, i_N);
    const auto short_N = rest_ND.norm(2, -1) < residual_threshold;
    const auto wide_N = v_N.to(torch::kFloat64);
    std::vector<int64_t> places, going;
    for (int64_t n = 0; n < static_cast<int64_t>(rows.size()); ++n) {
      if (!found_N.const_data_ptr<bool>()[n]) continue;
      const auto [entry, is_new] = f[rows[n]].emplace(i_N.const_data_ptr<int64_t>()[n], 0.0);
      entry->second += wide_N.const_data_ptr<double>()[n];
      if (!is_new || short_N.const_data_ptr<bool>()[n]) continue;
      places.push_back(n);
      going.push_back(rows[n]);
    }
    rest_ND = rest_ND.index_select(0, torch::tensor(places, torch::kInt64));
    rows = std::move(going);
  }
  std::vector<int64_t> offsets{0}, indices;
  std::vector<double> values;
  for (const auto& row : f) {
    for (const auto& [feature, value] : row) {
      indices.push_back(feature);
      values.push_back(value);
    }
    offsets.push_back(static_cast<int64_t>(indices.size()));
  }
  return {torch::tensor(offsets, torch::kInt64), torch::tensor(indices, torch::kInt64),
          torch::tensor(values, torch::kFloat64).to(x_ND.scalar_type())};
}

}  // namespace introspect::sae::architectures

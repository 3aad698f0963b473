#include "sae/architectures/architectures.h"

#include <ATen/ATen.h>

// f_ni = max(p_ni, 0) if p_ni is among the floor(k N) largest of all N rows, else 0
//
// Bussmann et al. 2024, arXiv:2412.06410; Matryoshka ones too (2503.17547). What a row's features are depends on the
// others': files hold them as jumprelu with one threshold.
namespace introspect::sae::architectures {

namespace {

int64_t of_all_rows(double k, int64_t rows) {
  return static_cast<int64_t>(k * static_cast<double>(rows));
}

}  // namespace

torch::Tensor batchtopk(const torch::Tensor& p, double k) {
  const auto f = at::relu(p).reshape({-1});
  return keep_largest(f, f, of_all_rows(k, f.numel() / p.size(-1))).reshape(p.sizes());
}

ops::SparseRows batchtopk_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear, double k) {
  return ops::topk_of_all_rows(x_ND, linear, of_all_rows(k, x_ND.size(0)));
}

}  // namespace introspect::sae::architectures

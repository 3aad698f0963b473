#include "sae/architectures/architectures.h"

#include <ATen/ATen.h>

// f_i = max(p_i, 0) if p_i is among the k largest of its row, else 0
//
// Gao et al. 2024, arXiv:2406.04093. Without relu (Qwen Scope, arXiv:2605.11887) f_i = p_i of the k largest, which may be
// below 0.
namespace introspect::sae::architectures {

torch::Tensor keep_largest(const torch::Tensor& f, const torch::Tensor& rank, int64_t k) {
  if (k >= f.size(-1)) return f;
  const auto order = std::get<1>(rank.detach().sort(/*stable=*/true, -1, /*descending=*/true));
  const auto chosen = order.narrow(-1, 0, k);
  return at::zeros_like(f).scatter(-1, chosen, f.gather(-1, chosen));
}

torch::Tensor topk(const torch::Tensor& p, int64_t k, bool relu) {
  const auto f = relu ? at::relu(p) : p;
  return keep_largest(f, f, k);
}

ops::SparseRows topk_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear, int64_t k, bool relu) {
  return ops::topk_rows(x_ND, linear, k, relu ? ops::Rank::positive : ops::Rank::value);
}

}  // namespace introspect::sae::architectures

#include "sae/architectures/architectures.h"

#include <ATen/ATen.h>

// f_i = p_i if |p_i| is among the k largest of its row, else 0
//
// arXiv:2510.00404: one feature stands for a direction and its opposite.
namespace introspect::sae::architectures {

torch::Tensor abstopk(const torch::Tensor& p, int64_t k) {
  return keep_largest(p, p.abs(), k);
}

ops::SparseRows abstopk_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear, int64_t k) {
  return ops::topk_rows(x_ND, linear, k, ops::Rank::magnitude);
}

}  // namespace introspect::sae::architectures

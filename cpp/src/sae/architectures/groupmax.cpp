#include "sae/architectures/architectures.h"

#include <ATen/ATen.h>

// f_i = max(p_i, 0) if p_i is the largest of its group, else 0; the groups are k runs of F / k features
//
// EleutherAI's sparsify (sparse_coder.py).
namespace introspect::sae::architectures {

torch::Tensor groupmax(const torch::Tensor& p, int64_t k) {
  const auto f = at::relu(p).unflatten(-1, {k, p.size(-1) / k});
  return keep_largest(f, f, 1).flatten(-2);
}

ops::SparseRows groupmax_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear, int64_t k) {
  return ops::group_max_rows(x_ND, linear, k);
}

}  // namespace introspect::sae::architectures

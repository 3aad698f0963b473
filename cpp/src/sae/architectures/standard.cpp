#include "sae/architectures/architectures.h"

#include <ATen/ATen.h>

// f_i = max(p_i, 0)
//
// Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features.
namespace introspect::sae::architectures {

torch::Tensor standard(const torch::Tensor& p) {
  return at::relu(p);
}

ops::SparseRows standard_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear) {
  return ops::rows_above(x_ND, linear);
}

}  // namespace introspect::sae::architectures

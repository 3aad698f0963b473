#include "sae/architectures/architectures.h"

#include <ATen/ATen.h>

// f_i = p_i if p_i > threshold_i, else 0
//
// Rajamanoharan et al. 2024, arXiv:2407.14435. The gradient is p's where it is kept; that of the threshold is estimated in
// training alone.
namespace introspect::sae::architectures {

torch::Tensor jumprelu(const torch::Tensor& p, const torch::Tensor& threshold_F) {
  return at::where(p <= threshold_F, at::zeros({}, p.options()), p);
}

ops::SparseRows jumprelu_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear,
                              const torch::Tensor& threshold_F) {
  return ops::rows_above(x_ND, linear, threshold_F);
}

}  // namespace introspect::sae::architectures

#pragma once

#include <torch/types.h>

#include "introspect/ops/sparse_rows.h"

// Each architecture twice: features f [.., F] of pre-activations p [.., F] with gradients, and those of rows x that are
// not 0, without [N, F] and without gradients. One file each, with its equation and source. k, where there is one, is at
// most F. Weights are in the dtype of p.
namespace introspect::sae::architectures {

torch::Tensor standard(const torch::Tensor& p);
ops::SparseRows standard_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear);

struct Gates {
  torch::Tensor b_gate_F, r_mag_F, b_mag_F;
  torch::Tensor scale_F = {};  ///< of f; undefined: 1
};
torch::Tensor gated(const torch::Tensor& q, const Gates& gates);
ops::SparseRows gated_rows(const torch::Tensor& x_ND, const torch::Tensor& W_FD, const Gates& gates);

torch::Tensor topk(const torch::Tensor& p, int64_t k, bool relu);
ops::SparseRows topk_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear, int64_t k, bool relu);

torch::Tensor abstopk(const torch::Tensor& p, int64_t k);
ops::SparseRows abstopk_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear, int64_t k);

torch::Tensor batchtopk(const torch::Tensor& p, double k);
ops::SparseRows batchtopk_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear, double k);

torch::Tensor jumprelu(const torch::Tensor& p, const torch::Tensor& threshold_F);
ops::SparseRows jumprelu_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear,
                              const torch::Tensor& threshold_F);

torch::Tensor groupmax(const torch::Tensor& p, int64_t k);
ops::SparseRows groupmax_rows(const torch::Tensor& x_ND, const ops::LinearRows& linear, int64_t k);

/// f [N, F] of x [N, D]: it has no p.
torch::Tensor matching_pursuit(const torch::Tensor& x_ND, const torch::Tensor& W_FD, int64_t k,
                               double residual_threshold);
ops::SparseRows matching_pursuit_rows(const torch::Tensor& x_ND, const torch::Tensor& W_FD, int64_t k,
                                      double residual_threshold);

/// f with 0 where it is not among the k of its last dimension that `rank` puts first; of equal ones the first.
torch::Tensor keep_largest(const torch::Tensor& f, const torch::Tensor& rank, int64_t k);

}  // namespace introspect::sae::architectures

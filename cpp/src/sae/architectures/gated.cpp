#include "sae/architectures/architectures.h"

#include <ATen/ATen.h>

// q = W_enc x,  f_i = max(e^{r_mag,i} q_i + b_mag,i, 0) if q_i + b_gate,i > 0, else 0
//
// Rajamanoharan et al. 2024, arXiv:2404.16014. The gate has no gradient; that of the paper is of its training loss.
namespace introspect::sae::architectures {

namespace {

torch::Tensor magnitudes(const torch::Tensor& q, const Gates& gates, const torch::Tensor& scale) {
  const auto f = at::relu(q * gates.r_mag_F.exp() + gates.b_mag_F);
  return scale.defined() ? f * scale : f;
}

}  // namespace

torch::Tensor gated(const torch::Tensor& q, const Gates& gates) {
  return magnitudes(q, gates, gates.scale_F) * (q > -gates.b_gate_F).to(q.scalar_type());
}

ops::SparseRows gated_rows(const torch::Tensor& x_ND, const torch::Tensor& W_FD, const Gates& gates) {
  auto open = ops::rows_above(x_ND, {W_FD}, -gates.b_gate_F);
  const auto of_entries = [&](const torch::Tensor& t_F) {
    return t_F.defined() ? t_F.index_select(0, open.indices) : t_F;
  };
  open.values =
      magnitudes(open.values.to(gates.r_mag_F.scalar_type()),
                 {{}, of_entries(gates.r_mag_F), of_entries(gates.b_mag_F)}, of_entries(gates.scale_F));
  // those that the gate let through with a magnitude of 0 are not features
  const auto kept = open.values != 0;
  const auto before = at::cat({at::zeros({1}, torch::kInt64), kept.cumsum(0)});
  return {before.index_select(0, open.offsets), open.indices.masked_select(kept),
          open.values.masked_select(kept)};
}

}  // namespace introspect::sae::architectures

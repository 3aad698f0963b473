#pragma once

#include <torch/types.h>

namespace introspect::ops {

/// True if `tree_attention` runs these queries: float32 or bfloat16 on the CPU, and no gradient is asked for.
bool has_tree_attention(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                        const torch::Tensor& v_BGSK);

/// Attention of the last T of S nodes of a token tree over themselves and their ancestors, by walking up the tree.
///
/// The work is that of the pairs that see one another, T times the depth, not T times S.
/// Shapes: q [1, T, H, K], k and v [1, G, S, K], parents int32 [S] -> [1, T, H, K]. A window counts ancestors, the node
/// itself included; 0: none.
torch::Tensor tree_attention(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                             const torch::Tensor& v_BGSK, const torch::Tensor& parents_S, double scale,
                             double soft_cap, int64_t window);

/// The same relation as an additive mask [1, 1, T, S].
torch::Tensor tree_mask(const torch::Tensor& parents_S, int64_t n_queries, int64_t window,
                        const torch::TensorOptions& options);

}  // namespace introspect::ops

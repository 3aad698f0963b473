#pragma once

#include <torch/types.h>

namespace introspect::ops {

/// Keys as nodes of a token tree, and which of them are queries.
struct TokenTree {
  torch::Tensor parents_S;  // int32 on the CPU: the parent of each key, which comes before it; -1 for a root
  torch::Tensor queries_T;  // int32 on the CPU: the key that is each query's own; undefined: the last T keys
  int64_t window = 0;       // how many ancestors a query sees, itself included; 0: all
};

/// True if `tree_attention` runs these queries: float32, float64 or bfloat16 on the CPU, and no gradient is asked for.
bool has_tree_attention(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                        const torch::Tensor& v_BGSK);

/// Attention of nodes of a token tree over themselves and their ancestors, by walking up the tree.
///
/// The work is that of the pairs that see one another, T times the depth, not T times S.
/// Shapes: q [1, T, H, K], k and v [1, G, S, K], sinks [H] or undefined -> [1, T, H, K].
torch::Tensor tree_attention(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                             const torch::Tensor& v_BGSK, const TokenTree& tree, double scale,
                             double soft_cap, const torch::Tensor& sinks_H = {});

/// The same relation as an additive mask [1, 1, T, S].
torch::Tensor tree_mask(const TokenTree& tree, int64_t n_queries, const torch::TensorOptions& options);

}  // namespace introspect::ops

#pragma once

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// Which keys each query may see.
struct AttentionMask {
  /// Query t sees keys up to its own: key t + (S - T), so that a chunk after a prefix sees the prefix.
  bool causal = true;

  /// Added to the scores, [B or 1, 1, T, S], 0 or -inf; it then holds the causal part too. Undefined for none.
  torch::Tensor additive;

  /// Keys as nodes of a token tree: int32 [S] on the CPU, the parent of each, which comes before it, -1 for a root. A
  /// query then sees itself and its ancestors. Batch 1.
  torch::Tensor parents;

  /// Of a tree: the key that is each query's own, int32 [T] on the CPU; undefined: the last T keys.
  torch::Tensor queries;

  /// Of a tree: how many ancestors a query sees, itself included; 0: all.
  int64_t window = 0;
};

/// Grouped-query attention without the pattern: z [B, T, H, K] from q [B, T, H, K], k and v [B, G, S, K].
///
/// Keys and values are never repeated for the R = H / G query heads of a group. Scores are scaled by `scale`, and capped
/// as in attention_scores; for `sinks` see attention_pattern. In a token tree the work is that of the pairs that see one another (on the CPU, without
/// gradients).
/// Throws ShapeError if H is not a multiple of G or the shapes do not fit.
INTROSPECT_EXPORT torch::Tensor attention(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                                          const torch::Tensor& v_BGSK, double scale,
                                          const AttentionMask& mask, double soft_cap = 0,
                                          const torch::Tensor& sinks_H = {});

/// Scores before the softmax [B, H, T, S], masked with -inf; before that c * tanh(scores / c) for soft_cap c > 0.
INTROSPECT_EXPORT torch::Tensor attention_scores(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                                                 double scale, const AttentionMask& mask,
                                                 double soft_cap = 0);

/// Softmax over the keys, in float32 at least, returned in the dtype of the scores.
///
/// sinks [H] are a score more for each head, whose share of the attention goes to no key: rows then sum to less than one
/// (gpt-oss; Xiao et al. 2023, arXiv:2309.17453).
INTROSPECT_EXPORT torch::Tensor attention_pattern(const torch::Tensor& scores_BHTS,
                                                  const torch::Tensor& sinks_H = {});

/// The pattern's mean of the values: z [B, T, H, K] from pattern [B, H, T, S] and v [B, G, S, K].
INTROSPECT_EXPORT torch::Tensor attend(const torch::Tensor& pattern_BHTS, const torch::Tensor& v_BGSK);

/// The mask of some of the T queries of a pass, rows int64 [n], over its S keys.
INTROSPECT_EXPORT AttentionMask mask_of_rows(const AttentionMask& mask, const torch::Tensor& rows, int64_t T,
                                             int64_t S, torch::ScalarType dtype);

/// The additive mask of T new positions after S - T cached ones: float [B, 1, T, S], 0 where query t may see key s.
///
/// real_BS is bool [B, S], false for padding; a padded query sees itself, so that no row of the softmax is empty.
/// A query sees the last `window` real keys only, its own included; 0: all of them.
INTROSPECT_EXPORT torch::Tensor additive_mask(const torch::Tensor& real_BS, int64_t n_queries,
                                              torch::ScalarType dtype, int64_t window = 0);

}  // namespace introspect::ops

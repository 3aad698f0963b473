#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

/// How attention is compared with a pattern.
struct MatchOptions {
  bool exclude_bos = false;            // attention to the first position counts for nothing
  bool exclude_current_token = false;  // nor does that of a position to itself
  bool absolute =
      false;  // 1 - sum |A - D| / T, the sum rounded to three digits, instead of sum (A D) / sum A
};

/// How well attention A [..., T, T] shows a pattern D [T, T], lower triangular: [...], float64 on the CPU.
///
/// A is not written to. Throws ShapeError for other shapes, std::invalid_argument for a pattern above the diagonal.
/// Source: TransformerLens's head_detector.
INTROSPECT_EXPORT torch::Tensor match_pattern(const torch::Tensor& attention, const torch::Tensor& detection,
                                              const MatchOptions& options = {});

/// The same for every head of the blocks before `n_layers` on one text, int64 tokens [T]: [n_layers, H].
///
/// One pass, which keeps one block's attention at a time.
INTROSPECT_EXPORT torch::Tensor match_heads(const models::Model& model, const torch::Tensor& tokens,
                                            const torch::Tensor& detection, const MatchOptions& options,
                                            int64_t n_layers);

struct HeadScoreOptions {
  std::map<std::string, torch::Tensor>
      patterns;  // further ones, each [T, T] and lower triangular, for texts of T tokens
  Progress progress;
};

/// Numbers of every head.
struct HeadScores {
  std::vector<std::string> names;
  torch::Tensor values;  // float64 [names, L, H] on the CPU; NaN where no position of the texts counts
  std::vector<int64_t> n_positions;  // that each is a mean over
};

/// What every head attends to in texts, from one pass, which keeps one block's attention at a time.
///
/// Means over positions (queries) i of all texts, from 0 on; A is a head's attention:
///     previous_token   A[i, i-1], i > 0
///     first_token      A[i, 0], i > 0
///     diagonal         A[i, i], i > 0
///     duplicate_token  sum of A[i, j] over j < i with token j = token i, where there is such a j
///     induction        sum of A[i, j] over j < i with token j-1 = token i, where there is such a j
///     induction_logit  what the head adds to the logit of the token at the last such j, less its mean over the
///                      vocabulary, with the final norm's scale held fixed: below zero for anti-induction
///     entropy          of A[i], divided by the log of the number of keys that i sees, i > 0: 1 is uniform
///     a pattern        sum of A[i, j] D[i, j], where row i of D is not zero
/// On random tokens that are repeated, `induction` is the usual prefix-matching score.
///
/// texts: int64 [B, T] each. Throws std::invalid_argument for no texts, ShapeError for other shapes, fewer than two
/// tokens or more than n_ctx, std::out_of_range for tokens outside the vocabulary, all before the first pass; Error
/// for attention that is not finite.
/// Source: Olsson et al. 2022, In-context Learning and Induction Heads.
INTROSPECT_EXPORT HeadScores head_scores(const models::Model& model, const std::vector<torch::Tensor>& texts,
                                         const HeadScoreOptions& options = {});

}  // namespace introspect::analysis

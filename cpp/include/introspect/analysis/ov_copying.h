#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

/// Which matrix the eigenvalues are of.
enum class OvCircuit {
  kHead,  // W_V W_O, from stream to stream [D, D]
  kFull,  // W_E W_V W_O W_U, from tokens to logits [V, V]
};

/// How much each head copies what it attends to: Re(sum of eigenvalues) / sum of their moduli, float64 [L, H].
///
/// 1: all eigenvalues are positive, the head raises what it reads; -1: it lowers that. The weights of norms, and the
/// centring of LayerNorm, count as parts of the matrices, so that folded weights give the same; divisions and biases
/// are left out. The eigenvalues are those of the products turned round, d_head x d_head, so that nothing of D or V
/// squared entries a head is made.
/// Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
INTROSPECT_EXPORT torch::Tensor ov_copying_scores(const models::Model& model, OvCircuit circuit);

struct CopyOptions {
  int64_t top_k = 5;
  int64_t max_tokens = 100;  // that are read, the first of the texts
  Progress progress;
};

/// What heads would do to the logit of a token that they attend to with all their weight.
struct CopyScores {
  torch::Tensor name_mover;        // [L, H] share of tokens that are among the top_k of what the head writes
  torch::Tensor copy_suppression;  // [L, H] share that are among the top_k of its negative
  torch::Tensor
      ov_diagonal;  // [L, H] logit of the token less its mean over the vocabulary, mean of the tokens
};

/// Reads each token's residual after block 0, lets every head move it (ln1, W_V, b_V, W_O, the norm after attention if
/// there is one), and reads the result through the final norm and the unembedding.
///
/// texts: int64 [B, T] each. Each distinct token is read where it stands first, but position 0 is left out, whose residual
/// is no token's. Ranks are exact: a token is dropped when top_k others are above it, so that most of the vocabulary is
/// never multiplied. float64 on the CPU.
/// Throws ShapeError for other shapes or without a token to read, std::invalid_argument for options below 1.
/// Sources: Wang et al. 2022, Interpretability in the Wild (copy score, top_k 5); McDougall et al. 2023, Copy
/// Suppression.
INTROSPECT_EXPORT CopyScores copy_scores(const models::Model& model, const std::vector<torch::Tensor>& texts,
                                         const CopyOptions& options = {});

}  // namespace introspect::analysis

#pragma once

#include <memory>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::models {

/// Changes of a model's weights that leave what it computes as it was, and make the weights easier to read. All are
/// TransformerLens's, and off unless asked for.
struct ProcessOptions {
  /// The weight of each norm, and LayerNorm's bias, go into the products that read the norm's output (queries, keys,
  /// values, the MLP's input, the unembedding); the norm's own weight is then one. Reading weights after a LayerNorm
  /// are centred as well, since their input has no mean. Norms of queries and keys, and of what a layer writes, are
  /// followed by no product and stay.
  bool fold_ln = false;

  /// What is written to the residual stream has no mean: LayerNorm, which subtracts it, does not see the difference.
  bool center_writing_weights = false;

  /// The logits of each position have no mean over the vocabulary: log-probabilities stay, logits do not.
  bool center_unembed = false;

  /// A pattern's rows sum to one, so value biases act as a constant: it moves into b_O.
  bool fold_value_biases = false;

  /// W_V W_O and W_Q W_K^T of each head are factored by their singular values: W_O gets orthonormal rows, the columns
  /// of W_V are orthogonal, and those of W_Q and W_K (biases included) orthogonal and of equal norm.
  bool refactor_factored_attn_matrices = false;
};

/// A model with processed weights; tensors that are not changed are shared with `model`, which stays as it is.
///
/// Computed in float32 at least and rounded to the model's dtype, in the order of ProcessOptions, except that value
/// biases are folded before matrices are refactored, which needs it. An embedding tied to the unembedding is untied
/// if one of them changes. The config keeps its normalization_type ("RMS", "LN"), and the hash is another one.
/// Throws ConfigError where the result would not be the same model: center_writing_weights without LayerNorm,
/// center_unembed with a soft cap on the logits, refactor_factored_attn_matrices with rotary positions (the product
/// then depends on them), norms of queries and keys, or grouped keys.
INTROSPECT_EXPORT std::shared_ptr<const Model> processed(const Model& model, const ProcessOptions& options);

}  // namespace introspect::models

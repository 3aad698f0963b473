#pragma once

#include <optional>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/context.h"
#include "introspect/nn/linear.h"
#include "introspect/nn/norm.h"

namespace introspect::nn {

/// Weights of an attention layer, with one product for queries, keys and values.
struct AttentionWeights {
  Linear QKV;  // [(H + 2G) * K, D]: the rows of all query heads, then of all key, then of all value heads
  Linear O;    // [D, H * K]
  std::optional<Norm> q_norm, k_norm;  // of each head, before the rotation
};

struct AttentionOptions {
  int64_t n_heads = 0, n_key_value_heads = 0, d_head = 0;
  double scale = 1;     // scores are divided by it
  double soft_cap = 0;  // c * tanh(scores / c); 0: none
  bool local = false;   // sees Context::local, not Context::global
};

/// What the projections read: the normed residual [B, T, D], or one of its own for each head [B, T, H or G, D].
struct AttentionInput {
  torch::Tensor q, k, v;
};

/// Causal self-attention with grouped keys.
class INTROSPECT_EXPORT Attention {
 public:
  /// Throws ShapeError for weights that do not fit the options.
  Attention(AttentionWeights weights, AttentionOptions options);

  /// x -> [B, T, D]. Appends to ctx.cache if there is one. Builds the whole pattern only where a hook may change it or the
  /// scores are capped; where it is read, the rows and heads that are read.
  ///
  /// Throws HookError if each query head is given a key input of its own while its group's keys are to be cached.
  torch::Tensor forward(const AttentionInput& x, const Context& ctx) const;

  const AttentionWeights& weights() const { return weights_; }
  AttentionWeights& weights() { return weights_; }  ///< of a copy that is edited; shapes stay
  const AttentionOptions& options() const { return options_; }

 private:
  struct Qkv {
    torch::Tensor q_BTHK, k_BTGK, v_BTGK;
  };
  Qkv project(const AttentionInput& x) const;
  void show_pattern(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK, const ops::AttentionMask& mask,
                    const Context& ctx) const;
  torch::Tensor project_out(const torch::Tensor& z_BTHK, const Context& ctx) const;

  AttentionWeights weights_;
  AttentionOptions options_;
};

}  // namespace introspect::nn

#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/context.h"
#include "introspect/nn/linear.h"
#include "introspect/nn/norm.h"

namespace introspect::nn {

/// A score of each head's own, [H], whose share of the attention goes to no key: gpt-oss.
struct Sinks {
  torch::Tensor scores;

  int64_t numel() const { return scores.numel(); }
  int64_t nbytes() const { return static_cast<int64_t>(scores.nbytes()); }

  /// Calls f(name, tensor) for the tensor of a Sinks or const Sinks: "attn.sinks".
  template <typename Self, typename F>
  static void for_each_tensor(Self& sinks, std::string_view part, F&& f) {
    f(std::string(part), sinks.scores);
  }
};

/// Weights of an attention layer, with one product for queries, keys and values.
struct AttentionWeights {
  Linear QKV;  // [(H + 2G) * K, D]: the rows of all query heads, then of all key, then of all value heads
  Linear O;    // [D, H * K]
  std::optional<Norm> q_norm, k_norm;  // of each head, or of all as one, before the rotation
  std::optional<Sinks> sinks;
};

struct AttentionOptions {
  int64_t n_heads = 0, n_key_value_heads = 0, d_head = 0;
  double score_divisor = 1;  // sqrt(d_head), but for some Gemmas
  double soft_cap = 0;       // c * tanh(scores / c); 0: none
  bool local = false;        // sees Context::local, not Context::global
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

  /// The scores of queries [B, T, H, K] for keys [B, G, S, K], divided and capped, -infinity where the mask hides a
  /// key: [B, H, T, S].
  torch::Tensor scores(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                       const ops::AttentionMask& mask) const;

  /// The pattern of scores [B, H, T, S]; with sinks, rows sum to less than one.
  torch::Tensor pattern(const torch::Tensor& scores_BHTS) const;

  /// z [B, T, H, K] of queries [B, T, H, K] for keys and values [B, G, S, K], without hook points.
  torch::Tensor attend(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK, const torch::Tensor& v_BGSK,
                       const ops::AttentionMask& mask) const;

  const AttentionWeights& weights() const { return weights_; }
  AttentionWeights& weights() { return weights_; }  ///< of a copy that is edited; shapes stay
  const AttentionOptions& options() const { return options_; }

 private:
  struct Qkv {
    torch::Tensor q_BTHK, k_BTGK, v_BTGK;
    torch::Tensor qk_BTnK;  // queries and keys side by side, where one product wrote them; else undefined
  };
  Qkv project(const AttentionInput& x) const;
  torch::Tensor sinks() const { return weights_.sinks ? weights_.sinks->scores : torch::Tensor{}; }
  void show_pattern(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK, const ops::AttentionMask& mask,
                    const Context& ctx) const;
  torch::Tensor project_out(const torch::Tensor& z_BTHK, const Context& ctx) const;

  AttentionWeights weights_;
  AttentionOptions options_;
};

}  // namespace introspect::nn

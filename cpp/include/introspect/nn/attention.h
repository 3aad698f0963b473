#pragma once

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/context.h"

namespace introspect::nn {

/// Weights of an attention layer in one product for queries, keys and values; biases undefined where there is none.
struct AttentionWeights {
  torch::Tensor
      W_QKV;  // [(H + 2G) * K, D]: the rows of all query heads, then of all key, then of all value heads
  torch::Tensor b_QKV;  // [(H + 2G) * K]; Qwen2 has it
  torch::Tensor W_O;    // [D, H * K]
  torch::Tensor b_O;    // [D]; Llama with attention_bias has it
};

/// Causal self-attention with rotary positions and grouped keys.
class INTROSPECT_EXPORT Attention {
 public:
  Attention(AttentionWeights weights, int64_t n_heads, int64_t n_key_value_heads, int64_t d_head);

  /// x [B, T, D] -> [B, T, D]. Appends to ctx.cache if there is one. Never builds the pattern unless it is hooked.
  torch::Tensor forward(const torch::Tensor& x_BTD, const Context& ctx) const;

  const AttentionWeights& weights() const { return weights_; }

 private:
  AttentionWeights weights_;
  int64_t H_, G_, K_;
};

}  // namespace introspect::nn

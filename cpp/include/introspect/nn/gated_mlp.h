#pragma once

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/context.h"

namespace introspect::nn {

/// Weights of a gated MLP, the gate's and the input's in one product; biases undefined where there is none.
struct GatedMlpWeights {
  torch::Tensor W_gate_in;  // [2M, D]: the gate's rows, then the input's
  torch::Tensor b_gate_in;  // [2M]; Llama with mlp_bias has it
  torch::Tensor W_out;      // [D, M]
  torch::Tensor b_out;      // [D]
};

/// silu(x W_gate) * (x W_in), times W_out, as in Llama and Qwen2 (SwiGLU, Shazeer 2020, arXiv:2002.05202).
class INTROSPECT_EXPORT GatedMlp {
 public:
  explicit GatedMlp(GatedMlpWeights weights);

  /// x [B, T, D] -> [B, T, D].
  torch::Tensor forward(const torch::Tensor& x_BTD, const Context& ctx) const;

  const GatedMlpWeights& weights() const { return weights_; }

 private:
  GatedMlpWeights weights_;
};

}  // namespace introspect::nn

#pragma once

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/context.h"
#include "introspect/ops/activation.h"

namespace introspect::nn {

/// Weights of an MLP, those of a gate in one product with the input's; biases undefined where there is none.
struct MlpWeights {
  torch::Tensor W_in;   // [2M, D]: the gate's rows, then the input's; [M, D] without a gate
  torch::Tensor b_in;   // [2M] or [M]
  torch::Tensor W_out;  // [D, M]
  torch::Tensor b_out;  // [D]
};

/// act(x W_in) W_out, or with a gate (act(x W_gate) * (x W_in)) W_out.
class INTROSPECT_EXPORT Mlp {
 public:
  Mlp(MlpWeights weights, ops::Activation activation);

  /// x [B, T, D] -> [B, T, D].
  torch::Tensor forward(const torch::Tensor& x_BTD, const Context& ctx) const;

  const MlpWeights& weights() const { return weights_; }
  ops::Activation activation() const { return activation_; }
  int64_t d_mlp() const { return weights_.W_out.size(1); }
  bool gated() const { return weights_.W_in.size(0) == 2 * d_mlp(); }

 private:
  MlpWeights weights_;
  ops::Activation activation_;
};

}  // namespace introspect::nn

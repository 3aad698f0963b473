#pragma once

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/context.h"
#include "introspect/nn/linear.h"
#include "introspect/ops/activation.h"

namespace introspect::nn {

/// Weights of an MLP, with one product for a gate and the input.
struct MlpWeights {
  Linear in;   // [2M, D]: the gate's rows, then the input's; [M, D] without a gate
  Linear out;  // [D, M]
};

/// act(x W_in) W_out, or with a gate (act(x W_gate) * (x W_in)) W_out.
class INTROSPECT_EXPORT Mlp {
 public:
  /// Throws ShapeError unless `in` has as many rows as `out` has columns, or twice as many.
  Mlp(MlpWeights weights, ops::Activation activation);

  /// x [B, T, D] -> [B, T, D].
  torch::Tensor forward(const torch::Tensor& x_BTD, const Context& ctx) const;

  const MlpWeights& weights() const { return weights_; }
  MlpWeights& weights() { return weights_; }  ///< of a copy that is edited; shapes stay
  ops::Activation activation() const { return activation_; }
  int64_t d_mlp() const { return weights_.out.n_in(); }
  bool gated() const { return weights_.in.n_out() == 2 * d_mlp(); }

 private:
  MlpWeights weights_;
  ops::Activation activation_;
};

}  // namespace introspect::nn

#include "introspect/nn/mlp.h"

#include "introspect/core/check.h"

namespace introspect::nn {

using hooks::Point;

Mlp::Mlp(MlpWeights weights, ops::Activation activation)
    : weights_(std::move(weights)), activation_(activation) {
  const int64_t M = d_mlp();
  check<ShapeError>(gated() || weights_.in.n_out() == M, "Mlp: W_in must have ", 2 * M,
                    " rows with a gate and ", M, " without, got ", weights_.in.n_out());
}

torch::Tensor Mlp::forward(const torch::Tensor& x_BTD, const Context& ctx) const {
  const int64_t M = d_mlp();
  const auto in = weights_.in.forward(x_BTD);
  torch::Tensor post_BTM;
  if (gated()) {
    const auto pre_BTM = ctx.hook(Point::kMlpPre, in.narrow(2, 0, M));
    const auto pre_linear_BTM = ctx.hook(Point::kMlpPreLinear, in.narrow(2, M, M));
    post_BTM = ops::gated(activation_, pre_BTM, pre_linear_BTM);
  } else {
    post_BTM = ops::activate(activation_, ctx.hook(Point::kMlpPre, in));
  }
  return weights_.out.forward(ctx.hook(Point::kMlpPost, post_BTM));
}

}  // namespace introspect::nn

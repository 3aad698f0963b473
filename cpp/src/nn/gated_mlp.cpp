#include "introspect/nn/gated_mlp.h"

#include "introspect/core/check.h"
#include "introspect/ops/linear.h"

namespace introspect::nn {

using hooks::Point;

GatedMlp::GatedMlp(GatedMlpWeights weights) : weights_(std::move(weights)) {
  check<ShapeError>(weights_.W_gate_in.size(0) == 2 * weights_.W_out.size(1),
                    "GatedMlp: W_gate_in must have ", 2 * weights_.W_out.size(1), " rows, got ",
                    weights_.W_gate_in.size(0));
}

torch::Tensor GatedMlp::forward(const torch::Tensor& x_BTD, const Context& ctx) const {
  const int64_t M = weights_.W_out.size(1);
  const auto gate_in_BT2M = ops::linear(x_BTD, weights_.W_gate_in, weights_.b_gate_in);
  const auto pre_BTM = ctx.hook(Point::kMlpPre, gate_in_BT2M.narrow(2, 0, M));
  const auto pre_linear_BTM = ctx.hook(Point::kMlpPreLinear, gate_in_BT2M.narrow(2, M, M));
  const auto post_BTM = ctx.hook(Point::kMlpPost, at::silu(pre_BTM) * pre_linear_BTM);
  return ops::linear(post_BTM, weights_.W_out, weights_.b_out);
}

}  // namespace introspect::nn

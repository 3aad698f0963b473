#include "introspect/nn/block.h"

namespace introspect::nn {

using hooks::Point;

Block::Block(RmsNorm ln1, Attention attn, RmsNorm ln2, GatedMlp mlp)
    : ln1_(std::move(ln1)), attn_(std::move(attn)), ln2_(std::move(ln2)), mlp_(std::move(mlp)) {}

torch::Tensor Block::forward(const torch::Tensor& resid_pre_BTD, const Context& ctx) const {
  auto x_BTD = ctx.hook(Point::kResidPre, resid_pre_BTD);
  const auto attn_out_BTD = ctx.hook(Point::kAttnOut, attn_.forward(ln1_.forward(x_BTD, ctx), ctx));
  x_BTD = ctx.hook(Point::kResidMid, x_BTD + attn_out_BTD);
  const auto mlp_out_BTD = ctx.hook(Point::kMlpOut, mlp_.forward(ln2_.forward(x_BTD, ctx), ctx));
  return ctx.hook(Point::kResidPost, x_BTD + mlp_out_BTD);
}

}  // namespace introspect::nn

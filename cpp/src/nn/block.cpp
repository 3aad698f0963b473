#include "introspect/nn/block.h"

#include "core/on_device.h"
#include "core/stages.h"
#include "introspect/core/check.h"
#include "introspect/ops/add.h"

namespace introspect::nn {

using hooks::Point;

namespace {

torch::Tensor sum(const torch::Tensor& residual, const torch::Tensor& part) {
  const InStage stage(Stage::kResidual);
  stage.count([&] { return StageWork{0, 3.0 * static_cast<double>(residual.nbytes())}; });
  return ops::add(residual, part);
}

}  // namespace

Block::Block(BlockParts parts) : parts_(std::move(parts)) {}

torch::Tensor Block::forward(const torch::Tensor& resid_pre_BTD, const Context& ctx) const {
  const auto& [ln1, attn, ln1_post, ln2, mlp, ln2_post, parallel] = parts_;
  auto x_BTD = ctx.hook(Point::kResidPre, resid_pre_BTD);

  auto attn_out_BTD = attn.forward(attention_input(x_BTD, ctx), ctx);
  if (ctx.outputs.defined()) x_BTD = x_BTD.index_select(1, on_device(ctx.outputs, x_BTD.device()));
  if (ln1_post) attn_out_BTD = ln1_post->forward(attn_out_BTD, ctx);
  attn_out_BTD = ctx.hook(Point::kAttnOut, attn_out_BTD);
  auto mid_BTD = sum(x_BTD, attn_out_BTD);
  if (!parallel) mid_BTD = ctx.hook(Point::kResidMid, mid_BTD);

  const auto mlp_in_BTD = ctx.hook(Point::kMlpIn, parallel ? x_BTD : mid_BTD);
  auto mlp_out_BTD = mlp.forward(ctx.hook(Point::kMlpInput, ln2.forward(mlp_in_BTD, ctx)), ctx);
  if (ln2_post) mlp_out_BTD = ln2_post->forward(mlp_out_BTD, ctx);
  mlp_out_BTD = ctx.hook(Point::kMlpOut, mlp_out_BTD);
  return ctx.hook(Point::kResidPost, sum(mid_BTD, mlp_out_BTD));
}

/// The normed residual; where the inputs of single heads are changed, or their gradients asked for, one for each head.
AttentionInput Block::attention_input(const torch::Tensor& x_BTD, const Context& ctx) const {
  const auto normed_BTD = parts_.ln1.forward(x_BTD, ctx);
  const bool split = ctx.wants(Point::kQInput) || ctx.wants(Point::kKInput) || ctx.wants(Point::kVInput);
  if (!split && !ctx.wants(Point::kAttnIn)) return {normed_BTD, normed_BTD, normed_BTD};

  const int64_t B = x_BTD.size(0), T = x_BTD.size(1), D = x_BTD.size(2);
  const int64_t H = parts_.attn.options().n_heads, G = parts_.attn.options().n_key_value_heads;
  const auto per_head = [&](int64_t n) { return x_BTD.unsqueeze(2).expand({B, T, n, D}); };
  const auto hook = [&](Point point, const torch::Tensor& in, const torch::Tensor& otherwise) {
    const auto hooked = ctx.hook(point, in);
    const bool own = ctx.wants(point) && (!hooked.is_same(in) || hooked.requires_grad());
    if (!own) return otherwise;
    check<HookError>(!ctx.changes(parts_.ln1.scale_point) && !ctx.changes(parts_.ln1.normalized_point),
                     "block ", ctx.layer, ": ", hooks::point_name(point),
                     " and ln1 cannot both be changed: each head then has a norm of its own");
    return parts_.ln1.apply(hooked);
  };
  const auto shared = hook(Point::kAttnIn, per_head(H), normed_BTD);  // [B, T, D] or [B, T, H, D]
  if (!split) return {shared, shared, shared};
  return {hook(Point::kQInput, per_head(H), shared), hook(Point::kKInput, per_head(G), shared),
          hook(Point::kVInput, per_head(G), shared)};
}

}  // namespace introspect::nn

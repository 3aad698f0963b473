#include "introspect/nn/attention.h"

#include <cmath>

#include "introspect/core/check.h"
#include "introspect/ops/linear.h"
#include "introspect/ops/rotary.h"

namespace introspect::nn {

using hooks::Point;

Attention::Attention(AttentionWeights weights, int64_t n_heads, int64_t n_key_value_heads, int64_t d_head)
    : weights_(std::move(weights)), H_(n_heads), G_(n_key_value_heads), K_(d_head) {
  check<ShapeError>(weights_.W_QKV.size(0) == (H_ + 2 * G_) * K_ && weights_.W_O.size(1) == H_ * K_,
                    "Attention: W_QKV must have ", (H_ + 2 * G_) * K_, " rows and W_O ", H_ * K_,
                    " columns, got ", weights_.W_QKV.sizes(), " and ", weights_.W_O.sizes());
}

torch::Tensor Attention::forward(const torch::Tensor& x_BTD, const Context& ctx) const {
  const int64_t B = x_BTD.size(0), T = x_BTD.size(1);
  const auto qkv_BTHK = ops::linear(x_BTD, weights_.W_QKV, weights_.b_QKV).view({B, T, H_ + 2 * G_, K_});
  const auto q_BTHK = ctx.hook(Point::kQ, qkv_BTHK.narrow(2, 0, H_));
  const auto k_BTGK = ctx.hook(Point::kK, qkv_BTHK.narrow(2, H_, G_));
  const auto v_BTGK = ctx.hook(Point::kV, qkv_BTHK.narrow(2, H_ + G_, G_));

  const auto rot_q_BTHK = ctx.hook(Point::kRotQ, ops::apply_rotary(q_BTHK, ctx.cos_BTK2, ctx.sin_BTK2));
  const auto rot_k_BTGK = ctx.hook(Point::kRotK, ops::apply_rotary(k_BTGK, ctx.cos_BTK2, ctx.sin_BTK2));

  auto k_BGSK = rot_k_BTGK.transpose(1, 2);
  auto v_BGSK = v_BTGK.transpose(1, 2);
  if (ctx.cache) std::tie(k_BGSK, v_BGSK) = ctx.cache->append(ctx.layer, k_BGSK, v_BGSK);

  const double scale = 1.0 / std::sqrt(static_cast<double>(K_));
  torch::Tensor z_BTHK;
  if (ctx.wants(Point::kAttnScores) || ctx.wants(Point::kPattern)) {
    const auto scores_BHTS =
        ctx.hook(Point::kAttnScores, ops::attention_scores(rot_q_BTHK, k_BGSK, scale, ctx.mask));
    z_BTHK = ops::attend(ctx.hook(Point::kPattern, ops::attention_pattern(scores_BHTS)), v_BGSK);
  } else {
    z_BTHK = ops::attention(rot_q_BTHK, k_BGSK, v_BGSK, scale, ctx.mask);
  }
  z_BTHK = ctx.hook(Point::kZ, z_BTHK);
  return ops::linear(z_BTHK.reshape({B, T, H_ * K_}), weights_.W_O, weights_.b_O);
}

}  // namespace introspect::nn

#include "introspect/nn/attention.h"

#include "core/on_device.h"
#include "core/stages.h"
#include "introspect/core/check.h"
#include "introspect/ops/rotary.h"

namespace introspect::nn {

using hooks::Point;

namespace {

/// One product for each head: x [B, T, n, D] times the rows of a weight [n * K, D], plus its bias -> [B, T, n, K].
///
/// Where n is a multiple of the weight's heads, each of these serves n / heads neighbours.
torch::Tensor project_heads(const torch::Tensor& x_BTnD, const Linear& linear, int64_t K) {
  const int64_t n = x_BTnD.size(2), D = x_BTnD.size(3), heads = linear.n_out() / K;
  const auto for_each = [&](const torch::Tensor& t) { return t.repeat_interleave(n / heads, 0); };
  auto y_BTnK = at::einsum("btnd,nkd->btnk", {x_BTnD, for_each(linear.dense().view({heads, K, D}))});
  const auto& b = linear.bias();
  return b.defined() ? y_BTnK + for_each(b.view({heads, K})) : y_BTnK;
}

/// Keys (or values) of the cache and of this pass, where gradients must reach this pass's: [B, G, S, K].
torch::Tensor with_gradient(const torch::Tensor& cached_BGSK, const torch::Tensor& now_BGTK) {
  const int64_t before = cached_BGSK.size(2) - now_BGTK.size(2);
  return at::cat({cached_BGSK.narrow(2, 0, before), now_BGTK}, 2);
}

/// The same where only some positions are asked, int64 on the CPU: their angles and their places among the S keys.
Positions of_outputs(Positions positions, const torch::Tensor& outputs, int64_t T, int64_t S) {
  if (!outputs.defined()) return positions;
  if (auto& additive = positions.mask.additive; additive.defined())
    additive = additive.index_select(2, on_device(outputs, additive.device()));
  if (positions.cos.defined()) {
    const auto rows = on_device(outputs, positions.cos.device());
    positions.cos = positions.cos.index_select(1, rows);
    positions.sin = positions.sin.index_select(1, rows);
  }
  positions.mask.queries = (outputs + (S - T)).to(torch::kInt);
  return positions;
}

torch::Tensor rotated(const torch::Tensor& x_BTHK, const Positions& positions) {
  const InStage stage(Stage::kRotary);
  stage.count([&] { return StageWork{0, 2.0 * static_cast<double>(x_BTHK.nbytes())}; });
  return ops::apply_rotary(x_BTHK, positions.cos, positions.sin);
}

/// Keys before each query count, where the mask is causal and nothing more; else every key.
StageWork attention_work(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                         const ops::AttentionMask& mask) {
  const auto T = static_cast<double>(q_BTHK.size(1)), S = static_cast<double>(k_BGSK.size(2));
  const bool causal = mask.causal && !mask.additive.defined() && !mask.parents.defined();
  const double pairs = causal ? T * S - T * (T - 1) / 2 : T * S;
  return {4 * pairs * static_cast<double>(q_BTHK.numel()) / T,
          2.0 * static_cast<double>(q_BTHK.nbytes() + k_BGSK.nbytes())};
}

}  // namespace

Attention::Attention(AttentionWeights weights, AttentionOptions options)
    : weights_(std::move(weights)), options_(std::move(options)) {
  const int64_t H = options_.n_heads, G = options_.n_key_value_heads, K = options_.d_head;
  check<ShapeError>(weights_.QKV.n_out() == (H + 2 * G) * K && weights_.O.n_in() == H * K,
                    "Attention: W_QKV must have ", (H + 2 * G) * K, " rows and W_O ", H * K, " columns, got ",
                    weights_.QKV.n_out(), " and ", weights_.O.n_in());
  check<ShapeError>(
      !weights_.sinks || (weights_.sinks->scores.dim() == 1 && weights_.sinks->scores.size(0) == H),
      "Attention: sinks must be one for each of ", H, " heads");
}

Attention::Qkv Attention::project(const AttentionInput& x) const {
  const InStage stage(Stage::kQkv);
  const int64_t H = options_.n_heads, G = options_.n_key_value_heads, K = options_.d_head;
  if (x.q.dim() == 3 && x.k.is_same(x.q) && x.v.is_same(x.q)) {
    const auto sizes = {x.q.size(0), x.q.size(1), H + 2 * G, K};
    const auto qkv_BTHK = weights_.QKV.forward(x.q).view(sizes);
    return {qkv_BTHK.narrow(2, 0, H), qkv_BTHK.narrow(2, H, G), qkv_BTHK.narrow(2, H + G, G),
            qkv_BTHK.narrow(2, 0, H + G)};
  }
  const auto part = [&](const torch::Tensor& in, int64_t first, int64_t heads) {
    const auto linear = weights_.QKV.rows(first * K, heads * K);
    return in.dim() == 4 ? project_heads(in, linear, K)
                         : linear.forward(in).view({in.size(0), in.size(1), heads, K});
  };
  return {part(x.q, 0, H), part(x.k, H, G), part(x.v, H + G, G), {}};
}

torch::Tensor Attention::forward(const AttentionInput& x, const Context& ctx) const {
  const auto& positions = options_.local ? ctx.local : ctx.global;
  auto asked = x;
  if (ctx.outputs.defined()) asked.q = x.q.index_select(1, on_device(ctx.outputs, x.q.device()));
  const auto qkv = project(asked);
  auto q_BTHK = ctx.hook(Point::kQ, qkv.q_BTHK);
  auto k_BTGK = ctx.hook(Point::kK, qkv.k_BTGK);
  const auto v_BTGK = ctx.hook(Point::kV, qkv.v_BTGK);

  if (weights_.q_norm) {
    q_BTHK = weights_.q_norm->forward(q_BTHK, ctx);
    k_BTGK = weights_.k_norm->forward(k_BTGK, ctx);
  }
  const int64_t T = k_BTGK.size(1);
  const auto query = of_outputs(positions, ctx.outputs, T, ctx.cache ? ctx.cache->length(ctx.layer) + T : T);
  if (positions.cos.defined()) {
    // As the product wrote them they lie side by side: on a device one rotation serves both.
    const bool as_written = q_BTHK.is_same(qkv.q_BTHK) && k_BTGK.is_same(qkv.k_BTGK);
    if (qkv.qk_BTnK.defined() && as_written && !q_BTHK.is_cpu()) {
      const auto qk_BTnK = rotated(qkv.qk_BTnK, positions);
      q_BTHK = qk_BTnK.narrow(2, 0, options_.n_heads);
      k_BTGK = qk_BTnK.narrow(2, options_.n_heads, options_.n_key_value_heads);
    } else {
      q_BTHK = rotated(q_BTHK, query);
      k_BTGK = rotated(k_BTGK, positions);
    }
    q_BTHK = ctx.hook(Point::kRotQ, q_BTHK);
    k_BTGK = ctx.hook(Point::kRotK, k_BTGK);
  }

  auto k_BGSK = k_BTGK.transpose(1, 2), v_BGSK = v_BTGK.transpose(1, 2);
  if (ctx.cache) {
    const InStage stage(Stage::kAttention);
    check<HookError>(
        k_BTGK.size(2) == options_.n_key_value_heads, "block ", ctx.layer,
        ": hook_attn_in gives each query head keys of its own, and the cache ",
        "holds one key for each group: run without a cache, or change hook_q_input, hook_k_input ",
        "and hook_v_input");
    const auto now_k = k_BGSK, now_v = v_BGSK;
    std::tie(k_BGSK, v_BGSK) = ctx.cache->append(ctx.layer, now_k.detach(), now_v.detach());
    if (now_k.requires_grad()) k_BGSK = with_gradient(k_BGSK, now_k);
    if (now_v.requires_grad()) v_BGSK = with_gradient(v_BGSK, now_v);
  }

  torch::Tensor z_BTHK;
  if (ctx.changes(Point::kAttnScores) || ctx.changes(Point::kPattern)) {
    const auto scores_BHTS = ctx.hook(Point::kAttnScores, scores(q_BTHK, k_BGSK, query.mask));
    z_BTHK = ops::attend(ctx.hook(Point::kPattern, pattern(scores_BHTS)), v_BGSK);
  } else {
    z_BTHK = attend(q_BTHK, k_BGSK, v_BGSK, query.mask);
    if (ctx.wants(Point::kAttnScores) || ctx.wants(Point::kPattern))
      show_pattern(q_BTHK, k_BGSK, query.mask, ctx);
  }
  return project_out(ctx.hook(Point::kZ, z_BTHK), ctx);
}

torch::Tensor Attention::scores(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                                const ops::AttentionMask& mask) const {
  return ops::attention_scores(q_BTHK, k_BGSK, 1 / options_.score_divisor, mask, options_.soft_cap);
}

torch::Tensor Attention::pattern(const torch::Tensor& scores_BHTS) const {
  return ops::attention_pattern(scores_BHTS, sinks());
}

torch::Tensor Attention::attend(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                                const torch::Tensor& v_BGSK, const ops::AttentionMask& mask) const {
  const InStage stage(Stage::kAttention);
  stage.count([&] { return attention_work(q_BTHK, k_BGSK, mask); });
  return ops::attention(q_BTHK, k_BGSK, v_BGSK, 1 / options_.score_divisor, mask, options_.soft_cap, sinks());
}

/// Computes the scores and the pattern for those who read them: of the queries and heads that they ask for.
void Attention::show_pattern(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                             const ops::AttentionMask& mask, const Context& ctx) const {
  const hooks::Site scores{Point::kAttnScores, ctx.layer}, pattern{Point::kPattern, ctx.layer};
  const bool wants_scores = ctx.hooks->wants(scores), wants_pattern = ctx.hooks->wants(pattern);
  auto part = ctx.hooks->asked(wants_pattern ? pattern : scores);
  if (wants_scores && wants_pattern && !(ctx.hooks->asked(scores) == part)) part = {};

  auto q_BtHK = q_BTHK;
  auto keys = k_BGSK;
  auto sinks_h = sinks();
  auto visible = mask;
  if (!std::holds_alternative<std::monostate>(part.positions)) {
    const int64_t T = q_BTHK.size(1), S = k_BGSK.size(2);
    const auto rows = on_device(hooks::position_indices(part, T), q_BTHK.device());
    q_BtHK = q_BTHK.index_select(1, rows);
    visible = ops::mask_of_rows(mask, rows, T, S, q_BTHK.scalar_type());
  }
  if (!part.heads.empty()) {
    const int64_t H = q_BTHK.size(2), R = H / k_BGSK.size(1);
    const auto heads = on_device(part.heads, q_BTHK.device()).remainder(H);
    q_BtHK = q_BtHK.index_select(2, heads);
    keys = k_BGSK.index_select(1, heads.div(R, "floor"));
    if (sinks_h.defined()) sinks_h = sinks_h.index_select(0, heads);
  }
  const auto scores_BhtS = this->scores(q_BtHK, keys, visible);
  if (wants_scores) ctx.hooks->record(scores, scores_BhtS, part);
  if (wants_pattern) ctx.hooks->record(pattern, ops::attention_pattern(scores_BhtS, sinks_h), part);
}

torch::Tensor Attention::project_out(const torch::Tensor& z_BTHK, const Context& ctx) const {
  const int64_t B = z_BTHK.size(0), T = z_BTHK.size(1), H = options_.n_heads, K = options_.d_head;
  if (ctx.wants(Point::kResult)) {
    const auto W_O_DHK = weights_.O.dense().view({-1, H, K});
    const auto result_BTHD = at::einsum("bthk,dhk->bthd", {z_BTHK, W_O_DHK});
    const auto hooked_BTHD = ctx.hook(Point::kResult, result_BTHD);
    if (!hooked_BTHD.is_same(result_BTHD) || hooked_BTHD.requires_grad()) {
      const auto out_BTD = hooked_BTHD.sum(2);
      return weights_.O.bias().defined() ? out_BTD + weights_.O.bias() : out_BTD;
    }
  }
  const InStage stage(Stage::kOutput);
  return weights_.O.forward(z_BTHK.reshape({B, T, H * K}));
}

}  // namespace introspect::nn

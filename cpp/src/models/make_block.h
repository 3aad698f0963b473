#pragma once

#include <optional>
#include <string_view>
#include <utility>

#include <torch/types.h>

#include "introspect/models/config.h"
#include "introspect/nn/block.h"

namespace introspect::models {

/// A norm as a config has it, its weight and bias from `source` (see make_block).
template <typename Source>
nn::Norm make_norm(const Config& cfg, const Source& source, std::string_view part, int64_t width,
                   hooks::Point scale_point, hooks::Point normalized_point) {
  nn::Norm out;
  out.eps = cfg.eps;
  out.kind = cfg.norm_weight_offset           ? nn::NormKind::kGemmaRms
             : cfg.norm_rounds_last           ? nn::NormKind::kRmsRoundedLast
             : cfg.normalization_type == "LN" ? nn::NormKind::kLayer
                                              : nn::NormKind::kRms;
  out.scale_point = scale_point;
  out.normalized_point = normalized_point;
  std::tie(out.weight, out.bias) = source.norm(part, width, out.kind);
  return out;
}

/// A block as a config has it, from parts under the names of nn::for_each_part.
///
/// `source` has linear(part, rows, columns, has_bias) -> nn::Linear, norm(part, width, kind) -> the weight (of
/// kGemmaRms with the one added, in float32) and, for kLayer, the bias; vector(part, width) -> a tensor; and
/// experts(rows of one's `in`) -> the MLPs of a mixture.
template <typename Source>
nn::Block make_block(const Config& cfg, int64_t layer, const Source& source) {
  using hooks::Point;
  const int64_t D = cfg.d_model, H = cfg.n_heads, G = cfg.n_key_value_heads, K = cfg.d_head, M = cfg.d_mlp;
  const auto norm = [&](std::string_view part, int64_t width, Point scale, Point normalized) {
    return make_norm(cfg, source, part, width, scale, normalized);
  };
  const auto norm_if = [&](bool wanted, auto... arguments) {
    return wanted ? std::optional(norm(arguments...)) : std::nullopt;
  };
  const auto norm_before = [&](std::string_view part, Point scale, Point normalized) {
    if (cfg.norms_input()) return norm(part, D, scale, normalized);
    nn::Norm none;
    none.kind = nn::NormKind::kNone;
    return none;
  };
  const auto qk_norm = [&](std::string_view part, int64_t heads, Point scale, Point normalized) {
    auto out = norm_if(cfg.use_qk_norm, part, cfg.qk_norm_over_heads ? heads * K : K, scale, normalized);
    if (out) out->over_heads = cfg.qk_norm_over_heads;
    return out;
  };
  const auto mlp = [&] {
    const int64_t rows = cfg.gated_mlp ? 2 * M : M;
    const auto activation = ops::parse_activation(cfg.act_fn);
    if (!cfg.is_mixture())
      return nn::Mlp({.in = source.linear("mlp.in", rows, D, cfg.mlp_bias),
                      .out = source.linear("mlp.out", D, M, cfg.mlp_bias)},
                     activation);
    return nn::Mlp({.router = source.linear("mlp.router", cfg.num_experts, D, cfg.router_bias),
                    .experts = source.experts(rows)},
                   {.experts_per_token = cfg.experts_per_token, .norm_topk_prob = cfg.norm_topk_prob},
                   activation);
  };
  const auto sinks = [&]() -> std::optional<nn::Sinks> {
    if (!cfg.attn_sinks) return std::nullopt;
    return nn::Sinks{source.vector("attn.sinks", H)};
  };
  const bool after = cfg.norms_output();
  return nn::Block(
      {.ln1 = norm_before("ln1", Point::kLn1Scale, Point::kLn1Normalized),
       .attn =
           nn::Attention({.QKV = source.linear("attn.QKV", (H + 2 * G) * K, D, cfg.qkv_bias),
                          .O = source.linear("attn.O", D, H * K, cfg.attn_out_bias),
                          .q_norm = qk_norm("attn.q_norm", H, Point::kQNormScale, Point::kQNormNormalized),
                          .k_norm = qk_norm("attn.k_norm", G, Point::kKNormScale, Point::kKNormNormalized),
                          .sinks = sinks()},
                         {.n_heads = H,
                          .n_key_value_heads = G,
                          .d_head = K,
                          .score_divisor = cfg.attn_scale,
                          .soft_cap = cfg.attn_scores_soft_cap,
                          .local = cfg.is_local(layer)}),
       .ln1_post = norm_if(after, "ln1_post", D, Point::kLn1PostScale, Point::kLn1PostNormalized),
       .ln2 = norm_before("ln2", Point::kLn2Scale, Point::kLn2Normalized),
       .mlp = mlp(),
       .ln2_post = norm_if(after, "ln2_post", D, Point::kLn2PostScale, Point::kLn2PostNormalized),
       .parallel = cfg.parallel_attn_mlp});
}

}  // namespace introspect::models

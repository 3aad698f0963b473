#include "introspect/models/config.h"

#include <array>
#include <cmath>
#include <initializer_list>
#include <utility>

#include "introspect/core/check.h"

namespace introspect::models {

namespace {

void check_choice(const char* field, const std::string& value, std::initializer_list<const char*> choices) {
  std::string known;
  for (const char* choice : choices) {
    if (value == choice) return;
    known += concat(known.empty() ? "" : ", ", choice);
  }
  throw ConfigError(concat("Config: ", field, " must be one of ", known, ", got '", value, "'"));
}

}  // namespace

void Config::validate() const {
  const std::array<std::pair<const char*, int64_t>, 8> sizes = {{{"n_layers", n_layers},
                                                                 {"d_model", d_model},
                                                                 {"n_heads", n_heads},
                                                                 {"n_key_value_heads", n_key_value_heads},
                                                                 {"d_head", d_head},
                                                                 {"d_mlp", d_mlp},
                                                                 {"d_vocab", d_vocab},
                                                                 {"n_ctx", n_ctx}}};
  for (const auto& [name, value] : sizes)
    check<ConfigError>(value > 0 && value < (int64_t{1} << 31), "Config: ", name, " must be positive, got ",
                       value);
  check<ConfigError>(n_heads % n_key_value_heads == 0,
                     "Config: n_heads must be a multiple of n_key_value_heads, got ", n_heads, " and ",
                     n_key_value_heads);
  check<ConfigError>(std::isfinite(eps) && eps >= 0, "Config: eps must not be negative, got ", eps);
  check_choice("act_fn", act_fn, {"silu", "gelu", "gelu_new"});
  check_choice("normalization_type", normalization_type, {"RMS", "LN"});
  check_choice("positional_embedding_type", positional_embedding_type, {"rotary", "standard"});
  if (positional_embedding_type == "rotary") {
    check<ConfigError>(rotary_dim > 0 && rotary_dim <= d_head && rotary_dim % 2 == 0,
                       "Config: rotary_dim must be even and at most d_head = ", d_head, ", got ", rotary_dim);
    check<ConfigError>(std::isfinite(rotary_base) && rotary_base > 0,
                       "Config: rotary_base must be positive, got ", rotary_base);
    check<ConfigError>(std::isfinite(rotary_base_local) && rotary_base_local >= 0,
                       "Config: rotary_base_local must not be negative, got ", rotary_base_local);
  }
  const std::array<std::pair<const char*, double>, 4> numbers = {
      {{"attn_scale", attn_scale},
       {"embed_scale", embed_scale},
       {"1 + attn_scores_soft_cap", 1 + attn_scores_soft_cap},
       {"1 + output_logits_soft_cap", 1 + output_logits_soft_cap}}};
  for (const auto& [name, value] : numbers)
    check<ConfigError>(std::isfinite(value) && value > 0, "Config: ", name, " must be positive, got ", value);
  check<ConfigError>(attn_types.empty() || static_cast<int64_t>(attn_types.size()) == n_layers,
                     "Config: attn_types must name each of the ", n_layers, " layers, got ",
                     attn_types.size());
  for (const auto& type : attn_types) {
    check_choice("attn_types", type, {"global", "local"});
    check<ConfigError>(type == "global" || window_size > 0,
                       "Config: window_size must be positive in a model with local layers, got ",
                       window_size);
  }
}

hooks::HookPoints hook_points(const Config& cfg) {
  using hooks::Point;
  hooks::HookPoints out;
  out.n_layers = cfg.n_layers;
  out.d_model = cfg.d_model;
  out.n_heads = cfg.n_heads;
  out.n_key_value_heads = cfg.n_key_value_heads;
  out.d_head = cfg.d_head;
  out.d_mlp = cfg.d_mlp;
  out.d_vocab = cfg.d_vocab;
  out.points.set();
  const auto only_if = [&](bool condition, std::initializer_list<Point> points) {
    for (const Point point : points) out.points.set(static_cast<size_t>(point), condition);
  };
  const bool rotary = cfg.positional_embedding_type == "rotary";
  only_if(rotary, {Point::kRotQ, Point::kRotK});
  only_if(!rotary, {Point::kPosEmbed});
  only_if(cfg.use_qk_norm,
          {Point::kQNormScale, Point::kQNormNormalized, Point::kKNormScale, Point::kKNormNormalized});
  only_if(cfg.use_normalization_before_and_after,
          {Point::kLn1PostScale, Point::kLn1PostNormalized, Point::kLn2PostScale, Point::kLn2PostNormalized});
  only_if(!cfg.parallel_attn_mlp, {Point::kResidMid});
  only_if(cfg.gated_mlp, {Point::kMlpPreLinear});
  return out;
}

}  // namespace introspect::models

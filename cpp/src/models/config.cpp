#include "introspect/models/config.h"

#include <algorithm>
#include <array>
#include <cctype>
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

/// Frequencies lie between 1 / (base * factor) and 1, or 1 / base, and float32 has to hold them.
void check_rotary(const Config& cfg) {
  const auto in_range = [](double value) { return value > 1e-30 && value < 1e30; };
  const auto& s = cfg.rotary_scaling;
  check<ConfigError>(in_range(cfg.rotary_base),
                     "Config: rotary_base (rope_theta) must be positive and a base of "
                     "frequencies that float32 holds, got ",
                     cfg.rotary_base);
  check<ConfigError>(cfg.rotary_base_local == 0 || in_range(cfg.rotary_base_local),
                     "Config: rotary_base_local (rope_local_base_freq) must be 0 or such a base, got ",
                     cfg.rotary_base_local);
  check_choice("rotary_scaling.type", s.type, {"none", "linear", "llama3", "yarn", "longrope", "dynamic"});
  if (s.type == "none") return;
  check<ConfigError>(s.factor > 1e-6 && s.factor < 1e6,
                     "Config: the rope scaling's factor must be positive and below 1e6, got ", s.factor);
  if (s.type == "linear") return;
  check<ConfigError>(s.original_max_position >= 1 && in_range(s.original_max_position),
                     "Config: the rope scaling's original_max_position_embeddings must be 1 or more, got ",
                     s.original_max_position);
  check<ConfigError>(in_range(s.attention_factor),
                     "Config: the rope scaling's attention_factor must be positive, got ",
                     s.attention_factor);
  if (s.type == "yarn")
    check<ConfigError>(
        s.beta_slow > 0 && s.beta_slow <= s.beta_fast && in_range(s.beta_fast) && cfg.rotary_base > 1,
        "Config: the rope scaling's beta_slow must be positive and at most beta_fast, and rotary_base "
        "above 1, got ",
        s.beta_slow, ", ", s.beta_fast, " and ", cfg.rotary_base);
  if (s.type == "longrope")
    for (const auto* factors : {&s.short_factor, &s.long_factor})
      check<ConfigError>(static_cast<int64_t>(factors->size()) == cfg.rotary_dim / 2 &&
                             std::ranges::all_of(*factors, [](double f) { return f > 1e-6 && f < 1e6; }),
                         "Config: the rope scaling's short_factor and long_factor must hold ",
                         cfg.rotary_dim / 2, " positive numbers each, got ", factors->size());
  if (s.type != "llama3") return;
  check<ConfigError>(
      s.low_freq_factor > 0 && s.low_freq_factor <= s.high_freq_factor && in_range(s.high_freq_factor),
      "Config: the rope scaling's low_freq_factor must be positive and at most high_freq_factor, got ",
      s.low_freq_factor, " and ", s.high_freq_factor);
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
    check<ConfigError>(value > 0 && value < kLargestSize, "Config: ", name, " must be from 1 to ",
                       kLargestSize - 1, ", got ", value);
  // Sums and products of these are sizes of tensors.
  check<ConfigError>(n_heads * d_head < kLargestSize, "Config: n_heads * d_head must be below ", kLargestSize,
                     ", got ", n_heads * d_head);
  check<ConfigError>(n_heads % n_key_value_heads == 0,
                     "Config: n_heads must be a multiple of n_key_value_heads, got ", n_heads, " and ",
                     n_key_value_heads);
  check<ConfigError>(eps >= 0 && eps <= 1, "Config: eps must be from 0 to 1, got ", eps);
  check_choice("act_fn", act_fn, {"silu", "gelu", "gelu_new", "swiglu_clamped"});
  check<ConfigError>(act_fn != "swiglu_clamped" || gated_mlp,
                     "Config: act_fn 'swiglu_clamped' needs a gate (gated_mlp)");
  check<ConfigError>(num_experts >= 0 && num_experts < kLargestSize / n_layers &&
                         experts_per_token >= (num_experts > 0 ? 1 : 0) && experts_per_token <= num_experts,
                     "Config: experts_per_token must be from 1 to num_experts in a mixture of experts and 0 "
                     "without, got ",
                     experts_per_token, " of ", num_experts);
  check<ConfigError>(!use_normalization_after_only || !use_normalization_before_and_after,
                     "Config: layers norm what they write either too or only: "
                     "use_normalization_before_and_after and use_normalization_after_only are both true");
  check<ConfigError>(!qk_norm_over_heads || use_qk_norm, "Config: qk_norm_over_heads needs use_qk_norm");
  check_choice("normalization_type", normalization_type, {"RMS", "LN"});
  check_choice("positional_embedding_type", positional_embedding_type, {"rotary", "standard"});
  if (positional_embedding_type == "rotary") {
    check<ConfigError>(rotary_dim > 0 && rotary_dim <= d_head && rotary_dim % 2 == 0,
                       "Config: rotary_dim must be even and at most d_head = ", d_head, ", got ", rotary_dim);
    check_rotary(*this);
  }
  for (const auto& [name, value] :
       {std::pair("attn_scale", attn_scale), std::pair("embed_scale", embed_scale)})
    check<ConfigError>(std::isfinite(value) && value > 0, "Config: ", name, " must be positive, got ", value);
  for (const auto& [name, value] : {std::pair("attn_scores_soft_cap", attn_scores_soft_cap),
                                    std::pair("output_logits_soft_cap", output_logits_soft_cap)})
    check<ConfigError>(std::isfinite(value) && value >= 0, "Config: ", name, " must not be negative, got ",
                       value);
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
  out.num_experts = cfg.num_experts;
  out.experts_per_token = cfg.experts_per_token;
  out.points.set();
  const auto only_if = [&](bool condition, std::initializer_list<Point> points) {
    for (const Point point : points) out.points.set(static_cast<size_t>(point), condition);
  };
  const bool rotary = cfg.positional_embedding_type == "rotary";
  only_if(rotary, {Point::kRotQ, Point::kRotK});
  only_if(!rotary, {Point::kPosEmbed});
  only_if(cfg.use_qk_norm,
          {Point::kQNormScale, Point::kQNormNormalized, Point::kKNormScale, Point::kKNormNormalized});
  only_if(cfg.norms_input(),
          {Point::kLn1Scale, Point::kLn1Normalized, Point::kLn2Scale, Point::kLn2Normalized});
  only_if(cfg.norms_output(),
          {Point::kLn1PostScale, Point::kLn1PostNormalized, Point::kLn2PostScale, Point::kLn2PostNormalized});
  only_if(!cfg.parallel_attn_mlp, {Point::kResidMid});
  only_if(cfg.is_mixture(), {Point::kExpertWeights, Point::kExpertIndices});
  only_if(!cfg.is_mixture(), {Point::kMlpPre, Point::kMlpPost});
  only_if(cfg.gated_mlp && !cfg.is_mixture(), {Point::kMlpPreLinear});
  return out;
}

std::string model_type(const Config& cfg) {
  auto name = cfg.original_architecture;
  for (const char* ending : {"ForCausalLM", "LMHeadModel"}) name = name.substr(0, name.find(ending));
  if (name == "GPTNeoX") return "gpt_neox";
  if (name == "Gemma3") return "gemma3_text";
  if (name == "Qwen3Moe") return "qwen3_moe";
  if (name == "GptOss") return "gpt_oss";
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

}  // namespace introspect::models

#include "introspect/models/config_json.h"

#include <set>

#include <nlohmann/json.hpp>

#include "core/json.h"
#include "introspect/core/check.h"

namespace introspect::models {

namespace {

using nlohmann::json;

/// Calls visit(name, field) for each field, in the order in which Config declares them.
template <typename AConfig, typename Visit>
void for_each_field(AConfig& c, const Visit& visit) {
  visit("model_name", c.model_name);
  visit("original_architecture", c.original_architecture);
  visit("n_layers", c.n_layers);
  visit("d_model", c.d_model);
  visit("n_heads", c.n_heads);
  visit("n_key_value_heads", c.n_key_value_heads);
  visit("d_head", c.d_head);
  visit("d_mlp", c.d_mlp);
  visit("d_vocab", c.d_vocab);
  visit("n_ctx", c.n_ctx);
  visit("act_fn", c.act_fn);
  visit("gated_mlp", c.gated_mlp);
  visit("num_experts", c.num_experts);
  visit("experts_per_token", c.experts_per_token);
  visit("norm_topk_prob", c.norm_topk_prob);
  visit("router_bias", c.router_bias);
  visit("normalization_type", c.normalization_type);
  visit("eps", c.eps);
  visit("norm_weight_offset", c.norm_weight_offset);
  visit("norm_rounds_last", c.norm_rounds_last);
  visit("use_normalization_before_and_after", c.use_normalization_before_and_after);
  visit("use_normalization_after_only", c.use_normalization_after_only);
  visit("use_qk_norm", c.use_qk_norm);
  visit("qk_norm_over_heads", c.qk_norm_over_heads);
  visit("positional_embedding_type", c.positional_embedding_type);
  visit("rotary_dim", c.rotary_dim);
  visit("rotary_base", c.rotary_base);
  visit("rotary_base_local", c.rotary_base_local);
  visit("rotary_scaling", c.rotary_scaling.type);
  visit("rotary_scaling_factor", c.rotary_scaling.factor);
  visit("rotary_scaling_low_freq_factor", c.rotary_scaling.low_freq_factor);
  visit("rotary_scaling_high_freq_factor", c.rotary_scaling.high_freq_factor);
  visit("rotary_scaling_original_max_position", c.rotary_scaling.original_max_position);
  visit("rotary_scaling_attention_factor", c.rotary_scaling.attention_factor);
  visit("rotary_scaling_beta_fast", c.rotary_scaling.beta_fast);
  visit("rotary_scaling_beta_slow", c.rotary_scaling.beta_slow);
  visit("rotary_scaling_truncate", c.rotary_scaling.truncate);
  visit("rotary_scaling_short_factor", c.rotary_scaling.short_factor);
  visit("rotary_scaling_long_factor", c.rotary_scaling.long_factor);
  visit("rotary_scaling_longest", c.rotary_scaling.longest);
  visit("rotary_in_float32", c.rotary_in_float32);
  visit("window_size", c.window_size);
  visit("attn_types", c.attn_types);
  visit("attn_sinks", c.attn_sinks);
  visit("attn_scale", c.attn_scale);
  visit("attn_scores_soft_cap", c.attn_scores_soft_cap);
  visit("output_logits_soft_cap", c.output_logits_soft_cap);
  visit("embed_scale", c.embed_scale);
  visit("parallel_attn_mlp", c.parallel_attn_mlp);
  visit("qkv_bias", c.qkv_bias);
  visit("attn_out_bias", c.attn_out_bias);
  visit("mlp_bias", c.mlp_bias);
  visit("tie_word_embeddings", c.tie_word_embeddings);
}

template <typename Field>
void read(const json& value, const char* name, Field& field) {
  constexpr bool is_bool = std::is_same_v<Field, bool>;
  constexpr bool is_int = std::is_same_v<Field, int64_t>;
  const bool fits = is_bool                              ? value.is_boolean()
                    : is_int                             ? value.is_number_integer()
                    : std::is_same_v<Field, double>      ? value.is_number()
                    : std::is_same_v<Field, std::string> ? value.is_string()
                                                         : value.is_array();
  try {
    check<ConfigError>(fits, "Config: ", name, " has the wrong type: ", describe(value));
    field = value.get<Field>();
  } catch (const json::exception&) {
    throw ConfigError(concat("Config: ", name, " has the wrong type: ", describe(value)));
  }
}

}  // namespace

std::string to_json(const Config& cfg) {
  nlohmann::ordered_json out;
  for_each_field(cfg, [&](const char* name, const auto& field) { out[name] = field; });
  return out.dump(-1, ' ', false,
                  nlohmann::ordered_json::error_handler_t::replace);  // a name need not be UTF-8
}

Config config_from_json(const std::string& text) {
  const auto given = parse_json<ConfigError>(text, "Config");
  check<ConfigError>(given.is_object(), "Config: must be a JSON object, got ", describe(given));
  Config cfg;
  std::set<std::string> known;
  for_each_field(cfg, [&](const char* name, auto& field) {
    known.insert(name);
    if (const auto found = given.find(name); found != given.end()) read(*found, name, field);
  });
  for (const auto& [name, value] : given.items())
    check<ConfigError>(known.count(name) > 0, "Config: there is no field ", excerpt(name));
  cfg.validate();
  return cfg;
}

}  // namespace introspect::models

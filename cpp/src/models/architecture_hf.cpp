#include <cmath>
#include <initializer_list>

#include <nlohmann/json.hpp>

#include "core/json.h"
#include "introspect/core/check.h"
#include "models/architecture.h"

namespace introspect::models {

namespace {

using nlohmann::json;
using Keys = std::initializer_list<const char*>;  // one setting's names, in different families and versions

/// The first of `keys` whose value is not null, or null.
const char* find_key(const json& config, Keys keys) {
  for (const char* key : keys)
    if (const auto found = config.find(key); found != config.end() && !found->is_null()) return key;
  return nullptr;
}

template <typename T>
T required(const json& config, Keys keys) {
  const char* key = find_key(config, keys);
  check<ConfigError>(key != nullptr, "config.json: '", *keys.begin(), "' is missing");
  try {
    return config.at(key).get<T>();
  } catch (const json::exception&) {
    throw ConfigError(concat("config.json: '", key, "' has the wrong type: ", describe(config.at(key))));
  }
}

template <typename T>
T optional(const json& config, Keys keys, T otherwise) {
  return find_key(config, keys) ? required<T>(config, keys) : otherwise;
}

const Family& family_of(const json& config) {
  // A config that was never saved names no architecture, only its type.
  const auto names = optional<std::vector<std::string>>(config, {"architectures"}, {});
  const auto type = optional<std::string>(config, {"model_type"}, "");
  std::string known;
  for (const auto& family : families()) {
    if (names.empty() ? type == family.model_type : names.front() == family.hf) return family;
    known += concat(known.empty() ? "" : ", ", family.hf);
  }
  throw ConfigError(concat("config.json: 'architectures' must be one of ", known, ", got '",
                           names.empty() ? type : names.front(), "'"));
}

/// What no model of these families has that this library runs.
void check_options(const json& config) {
  if (const auto found = config.find("quantization_config"); found != config.end() && !found->is_null())
    throw ConfigError(
        concat("config.json: the weights are quantised by '",
               found->is_object() ? optional<std::string>(*found, {"quant_method"}, "?") : describe(*found),
               "', which this library does not read; it reads safetensors in float formats, and GGUF"));
  check<ConfigError>(optional<int64_t>(config, {"num_local_experts", "num_experts"}, 0) <= 1,
                     "config.json: a mixture of experts, which this library does not run");
  for (const char* key :
       {"use_bidirectional_attention", "scale_attn_by_inverse_layer_idx", "add_cross_attention"})
    check<ConfigError>(!optional<bool>(config, {key}, false), "config.json: '", key,
                       "' is true, which this library does not run");
}

std::string activation(const json& config, const std::string& otherwise) {
  const auto name =
      optional<std::string>(config, {"hidden_activation", "hidden_act", "activation_function"}, otherwise);
  if (name == "silu" || name == "swish") return "silu";
  if (name == "gelu" || name == "gelu_python") return "gelu";
  // One formula: gelu_fast writes sqrt(2 / pi) with ten digits.
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return "gelu_new";
  throw ConfigError(
      concat("config.json: the activation must be silu, gelu or gelu_pytorch_tanh, got '", name, "'"));
}

void read_scaling(const json& scaling, ops::RotaryScaling& s) {
  const auto type = optional<std::string>(scaling, {"rope_type", "type"}, "default");
  if (type == "default") return;
  check<ConfigError>(type == "linear" || type == "llama3",
                     "config.json: rope scaling must be default, linear or llama3, got '", type,
                     "', which scales attention or follows the text's length");
  s.type = type;
  s.factor = required<double>(scaling, {"factor"});
  if (type == "linear") return;
  s.low_freq_factor = required<double>(scaling, {"low_freq_factor"});
  s.high_freq_factor = required<double>(scaling, {"high_freq_factor"});
  s.original_max_position = required<double>(scaling, {"original_max_position_embeddings"});
}

/// transformers 4 writes rope_theta and rope_scaling, transformers 5 both in rope_parameters: for Gemma 3, whose layers
/// have two bases, one such object for each type of layer.
void read_rotary(const json& config, const Family& family, Config& cfg) {
  json parameters = optional<json>(config, {"rope_parameters"}, json::object());
  json local = json::object();
  check<ConfigError>(parameters.is_object(), "config.json: 'rope_parameters' must be an object");
  if (find_key(parameters, {"full_attention", "sliding_attention"})) {
    local = optional<json>(parameters, {"sliding_attention"}, local);
    parameters = optional<json>(parameters, {"full_attention"}, json::object());
  }
  const json scaling = optional<json>(config, {"rope_scaling"}, parameters);
  check<ConfigError>(scaling.is_object() && parameters.is_object() && local.is_object(),
                     "config.json: 'rope_scaling' must be an object");
  cfg.rotary_base = optional<double>(config, {"rope_theta", "rotary_emb_base"},
                                     optional<double>(parameters, {"rope_theta"}, cfg.rotary_base));
  read_scaling(scaling, cfg.rotary_scaling);
  if (cfg.rotary_base_local > 0) {
    cfg.rotary_base_local = optional<double>(config, {"rope_local_base_freq"},
                                             optional<double>(local, {"rope_theta"}, cfg.rotary_base_local));
    ops::RotaryScaling none;
    read_scaling(local, none);
    check<ConfigError>(none.type == "none",
                       "config.json: rope scaling of sliding_attention must be default, got '", none.type,
                       "'");
  }
  const double part =
      optional<double>(config, {"partial_rotary_factor", "rotary_pct"},
                       optional<double>(parameters, {"partial_rotary_factor"}, family.rotary_part));
  cfg.rotary_dim = static_cast<int64_t>(static_cast<double>(cfg.d_head) * part);
}

/// Which layers see a window of keys: "layer_types", or the family's rule for files that leave it out.
void read_windows(const json& config, const Family& family, Config& cfg) {
  const auto rule = family.hf_window_period;
  if (!optional<bool>(config, {"use_sliding_window"}, rule != 0)) return;
  if (rule == 1 && !find_key(config, {"sliding_window"}))
    return;  // Mistral and Phi-3 come with a window and without
  cfg.window_size = required<int64_t>(config, {"sliding_window"});
  if (find_key(config, {"layer_types"})) {
    for (const auto& type : required<std::vector<std::string>>(config, {"layer_types"})) {
      check<ConfigError>(type == "full_attention" || type == "sliding_attention",
                         "config.json: 'layer_types' must be full_attention or sliding_attention, got '",
                         type, "'");
      cfg.attn_types.push_back(type == "full_attention" ? "global" : "local");
    }
    return;
  }
  const auto period = optional<int64_t>(config, {"sliding_window_pattern", "_sliding_window_pattern"}, rule);
  const auto first = rule == 0 ? required<int64_t>(config, {"max_window_layers"}) : 0;  // Qwen2 and Qwen3
  for (int64_t layer = 0; layer < cfg.n_layers; ++layer) {
    const bool local = layer >= first && (period <= 1 || (layer + 1) % period != 0);
    cfg.attn_types.push_back(local ? "local" : "global");
  }
}

/// The text model's part of a multimodal config. Gemma 3's leaves out what is as in transformers' Gemma3TextConfig.
json text_config(const json& config) {
  json text = {{"vocab_size", 262208},
               {"num_attention_heads", 8},
               {"num_key_value_heads", 4},
               {"head_dim", 256},
               {"rms_norm_eps", 1e-6},
               {"query_pre_attn_scalar", 256},
               {"max_position_embeddings", 131072}};
  const auto given = required<json>(config, {"text_config"});
  check<ConfigError>(given.is_object(), "config.json: 'text_config' must be an object");
  text.update(given);
  return text;
}

Config read_config(const json& config, const Family& family) {
  Config cfg = family.common;
  cfg.original_architecture = family.hf;
  cfg.n_layers = required<int64_t>(config, {"num_hidden_layers", "n_layer"});
  cfg.d_model = required<int64_t>(config, {"hidden_size", "n_embd"});
  cfg.n_heads = required<int64_t>(config, {"num_attention_heads", "n_head"});
  cfg.n_key_value_heads = optional<int64_t>(config, {"num_key_value_heads"}, cfg.n_heads);
  check<ConfigError>(cfg.n_heads > 0, "config.json: 'num_attention_heads' must be positive, got ",
                     cfg.n_heads);
  cfg.d_head = optional<int64_t>(config, {"head_dim"}, cfg.d_model / cfg.n_heads);
  cfg.d_mlp = family.mlp_ratio ? optional<int64_t>(config, {"n_inner"}, family.mlp_ratio * cfg.d_model)
                               : required<int64_t>(config, {"intermediate_size"});
  cfg.d_vocab = required<int64_t>(config, {"vocab_size"});
  cfg.n_ctx = required<int64_t>(config, {"max_position_embeddings", "n_positions"});
  cfg.act_fn = activation(config, cfg.act_fn);
  cfg.eps = required<double>(config, {"rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"});
  const bool fixed = family.common.qkv_bias != family.common.attn_out_bias;  // Qwen2
  if (!fixed && find_key(config, {"attention_bias"}))
    cfg.qkv_bias = cfg.attn_out_bias = required<bool>(config, {"attention_bias"});
  cfg.mlp_bias = optional<bool>(config, {"mlp_bias"}, cfg.mlp_bias);
  cfg.tie_word_embeddings = optional<bool>(config, {"tie_word_embeddings"}, cfg.tie_word_embeddings);
  cfg.parallel_attn_mlp = optional<bool>(config, {"use_parallel_residual"}, cfg.parallel_attn_mlp);

  const bool scaled = optional<bool>(config, {"scale_attn_weights"}, true);
  const auto scaled_by = optional<double>(config, {"query_pre_attn_scalar"}, static_cast<double>(cfg.d_head));
  cfg.attn_scale = scaled ? std::sqrt(scaled_by) : 1.0;
  const auto soft_cap = [&](const char* key, double otherwise) {
    const auto found = config.find(key);  // null means none, absence the family's default
    return found == config.end() ? otherwise : optional<double>(config, {key}, 0.0);
  };
  cfg.attn_scores_soft_cap = soft_cap("attn_logit_softcapping", cfg.attn_scores_soft_cap);
  cfg.output_logits_soft_cap = soft_cap("final_logit_softcapping", cfg.output_logits_soft_cap);
  // transformers holds the factor in float32, whatever the model's dtype.
  if (family.embed_scaled_by_width) cfg.embed_scale = std::sqrt(static_cast<float>(cfg.d_model));

  if (cfg.positional_embedding_type == "rotary") read_rotary(config, family, cfg);
  read_windows(config, family, cfg);
  cfg.validate();
  return cfg;
}

}  // namespace

Architecture architecture_of_hf(const json& config) {
  check<ConfigError>(config.is_object(), "config.json: must hold an object");
  const Family& family = family_of(config);
  check_options(config);
  const json text = config.contains("text_config") ? text_config(config) : config;
  return {read_config(text, family), family.hf_names};
}

}  // namespace introspect::models

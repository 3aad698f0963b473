#include "models/architecture.h"

#include <cmath>

#include <nlohmann/json.hpp>

#include "introspect/core/check.h"

namespace introspect::models {

namespace {

using nlohmann::json;

// The families read so far and the word each format has for them.
struct Family {
  const char* hf;    // config.json "architectures"
  const char* gguf;  // general.architecture
  bool qkv_bias;
  bool interleaved_rotary_in_gguf;
};

constexpr Family kFamilies[] = {
    {"Qwen2ForCausalLM", "qwen2", true, false},
    {"LlamaForCausalLM", "llama", false, true},
};

template <typename Matches>
const Family& find_family(const Matches& matches, const std::string& got, const char* key) {
  std::string known;
  for (const auto& family : kFamilies) {
    if (matches(family)) return family;
    known += concat(known.empty() ? "" : ", ", family.hf, " (GGUF: ", family.gguf, ")");
  }
  throw ConfigError(concat("model: ", key, " must be one of ", known, ", got '", got, "'"));
}

WeightMap hf_map() {
  WeightMap m;
  m.embed = "model.embed_tokens";
  m.ln_final = "model.norm";
  m.unembed = "lm_head";
  m.ln1 = "model.layers.{}.input_layernorm";
  m.q = "model.layers.{}.self_attn.q_proj";
  m.k = "model.layers.{}.self_attn.k_proj";
  m.v = "model.layers.{}.self_attn.v_proj";
  m.o = "model.layers.{}.self_attn.o_proj";
  m.ln2 = "model.layers.{}.post_attention_layernorm";
  m.gate = "model.layers.{}.mlp.gate_proj";
  m.in = "model.layers.{}.mlp.up_proj";
  m.out = "model.layers.{}.mlp.down_proj";
  return m;
}

WeightMap gguf_map(const Family& family) {
  WeightMap m;
  m.embed = "token_embd";
  m.ln_final = "output_norm";
  m.unembed = "output";
  m.ln1 = "blk.{}.attn_norm";
  m.q = "blk.{}.attn_q";
  m.k = "blk.{}.attn_k";
  m.v = "blk.{}.attn_v";
  m.o = "blk.{}.attn_output";
  m.ln2 = "blk.{}.ffn_norm";
  m.gate = "blk.{}.ffn_gate";
  m.in = "blk.{}.ffn_up";
  m.out = "blk.{}.ffn_down";
  m.interleaved_rotary = family.interleaved_rotary_in_gguf;
  m.rotary_factors = "rope_freqs.weight";
  return m;
}

template <typename T>
T required(const json& config, const char* key) {
  const auto found = config.find(key);
  check<ConfigError>(found != config.end() && !found->is_null(), "config.json: '", key, "' is missing");
  try {
    return found->get<T>();
  } catch (const json::exception&) {
    throw ConfigError(concat("config.json: '", key, "' has the wrong type: ", found->dump()));
  }
}

template <typename T>
T optional(const json& config, const char* key, T otherwise) {
  const auto found = config.find(key);
  return found == config.end() || found->is_null() ? otherwise : required<T>(config, key);
}

/// transformers 4 writes rope_theta and rope_scaling, transformers 5 both in rope_parameters.
void read_rotary(const json& config, Config& cfg) {
  const json parameters = optional<json>(config, "rope_parameters", json::object());
  const json scaling = optional<json>(config, "rope_scaling", parameters);
  check<ConfigError>(scaling.is_object() && parameters.is_object(),
                     "config.json: 'rope_scaling' must be an object");
  cfg.rotary_base =
      optional<double>(config, "rope_theta", optional<double>(parameters, "rope_theta", 10000.0));
  const auto type =
      optional<std::string>(scaling, "rope_type", optional<std::string>(scaling, "type", "default"));
  if (type == "default") return;
  check<ConfigError>(type == "linear" || type == "llama3",
                     "config.json: rope scaling must be default, linear or llama3, got '", type, "'");
  auto& s = cfg.rotary_scaling;
  s.type = type;
  s.factor = required<double>(scaling, "factor");
  if (type == "linear") return;
  s.low_freq_factor = required<double>(scaling, "low_freq_factor");
  s.high_freq_factor = required<double>(scaling, "high_freq_factor");
  s.original_max_position = required<double>(scaling, "original_max_position_embeddings");
}

}  // namespace

Architecture architecture_of_hf(const json& config) {
  check<ConfigError>(config.is_object(), "config.json: must hold an object");
  const auto names = required<std::vector<std::string>>(config, "architectures");
  const std::string name = names.empty() ? "" : names.front();
  const Family& family =
      find_family([&](const Family& f) { return name == f.hf; }, name, "config.json 'architectures'");

  Config cfg;
  cfg.original_architecture = family.hf;
  cfg.n_layers = required<int64_t>(config, "num_hidden_layers");
  cfg.d_model = required<int64_t>(config, "hidden_size");
  cfg.n_heads = required<int64_t>(config, "num_attention_heads");
  cfg.n_key_value_heads = optional<int64_t>(config, "num_key_value_heads", cfg.n_heads);
  check<ConfigError>(cfg.n_heads > 0, "config.json: 'num_attention_heads' must be positive, got ",
                     cfg.n_heads);
  cfg.d_head = optional<int64_t>(config, "head_dim", cfg.d_model / cfg.n_heads);
  cfg.d_mlp = required<int64_t>(config, "intermediate_size");
  cfg.d_vocab = required<int64_t>(config, "vocab_size");
  cfg.n_ctx = required<int64_t>(config, "max_position_embeddings");
  cfg.act_fn = required<std::string>(config, "hidden_act");
  cfg.eps = required<double>(config, "rms_norm_eps");
  cfg.qkv_bias = family.qkv_bias || optional<bool>(config, "attention_bias", false);
  cfg.attn_out_bias = !family.qkv_bias && optional<bool>(config, "attention_bias", false);
  cfg.mlp_bias = optional<bool>(config, "mlp_bias", false);
  cfg.tie_word_embeddings = optional<bool>(config, "tie_word_embeddings", false);
  check<ConfigError>(!optional<bool>(config, "use_sliding_window", false),
                     "config.json: 'use_sliding_window' is true, which this library does not run");
  read_rotary(config, cfg);
  cfg.rotary_dim = cfg.d_head;
  cfg.attn_scale = std::sqrt(static_cast<double>(cfg.d_head));
  cfg.validate();
  return {cfg, hf_map()};
}

Architecture architecture_of_gguf(const io::GgufFile& file) {
  const auto name = file.architecture();
  const Family& family =
      find_family([&](const Family& f) { return name == f.gguf; }, name, "general.architecture");
  const auto key = [&](const char* rest) { return name + "." + rest; };

  Config cfg;
  cfg.original_architecture = family.hf;
  cfg.n_layers = file.get_int(key("block_count"));
  cfg.d_model = file.get_int(key("embedding_length"));
  cfg.n_heads = file.get_int(key("attention.head_count"));
  cfg.n_key_value_heads = file.get_int_or(key("attention.head_count_kv"), cfg.n_heads);
  check<ConfigError>(cfg.n_heads > 0, "GGUF: ", key("attention.head_count"), " must be positive, got ",
                     cfg.n_heads);
  cfg.d_head = file.get_int_or(key("attention.key_length"), cfg.d_model / cfg.n_heads);
  cfg.d_mlp = file.get_int(key("feed_forward_length"));
  check<ConfigError>(file.has("token_embd.weight"), "GGUF: the tensor token_embd.weight is missing");
  cfg.d_vocab = file.shape("token_embd.weight").front();
  cfg.n_ctx = file.get_int(key("context_length"));
  cfg.eps = file.get_float(key("attention.layer_norm_rms_epsilon"));
  cfg.rotary_base = file.get_float_or(key("rope.freq_base"), 10000.0);
  const auto scaling = file.get_string_or(key("rope.scaling.type"), "none");
  if (scaling != "none") {
    check<ConfigError>(scaling == "linear", "GGUF: ", key("rope.scaling.type"),
                       " must be none or linear, got '", scaling, "'");
    cfg.rotary_scaling.type = scaling;
    cfg.rotary_scaling.factor = file.get_float(key("rope.scaling.factor"));
  }
  const auto d_rotary = file.get_int_or(key("rope.dimension_count"), cfg.d_head);
  check<ConfigError>(d_rotary == cfg.d_head, "GGUF: ", key("rope.dimension_count"),
                     " must be d_head = ", cfg.d_head, ", got ", d_rotary);
  cfg.rotary_dim = d_rotary;
  cfg.attn_scale = std::sqrt(static_cast<double>(cfg.d_head));
  cfg.qkv_bias = family.qkv_bias || file.has("blk.0.attn_q.bias");
  cfg.attn_out_bias = file.has("blk.0.attn_output.bias");
  cfg.mlp_bias = file.has("blk.0.ffn_up.bias");
  cfg.tie_word_embeddings = !file.has("output.weight");
  cfg.validate();
  return {cfg, gguf_map(family)};
}

}  // namespace introspect::models

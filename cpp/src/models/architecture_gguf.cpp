#include <cmath>
#include <variant>

#include "introspect/core/check.h"
#include "models/architecture.h"

namespace introspect::models {

namespace {

const Family& family_of(const std::string& name) {
  std::string known;
  for (const auto& family : families()) {
    if (name == family.gguf) return family;
    if (known.find(family.gguf) == std::string::npos) known += concat(known.empty() ? "" : ", ", family.gguf);
  }
  throw ConfigError(concat("GGUF: general.architecture must be one of ", known, ", got '", name, "'"));
}

void check_options(const io::GgufFile& file, const std::string& name) {
  check<ConfigError>(file.get_int_or(name + ".expert_count", 0) == 0,
                     "GGUF: a mixture of experts, which this library does not run");
  check<ConfigError>(
      !file.has("rope_factors_long.weight") && !file.has("rope_factors_short.weight"),
      "GGUF: rope scaling 'longrope', whose frequencies depend on the sequence's length, is not "
      "supported");
}

void read_rotary(const io::GgufFile& file, const std::string& name, Config& cfg) {
  cfg.rotary_base = file.get_float_or(name + ".rope.freq_base", cfg.rotary_base);
  if (cfg.rotary_base_local > 0)
    cfg.rotary_base_local = file.get_float_or(name + ".rope.freq_base_swa", cfg.rotary_base_local);
  cfg.rotary_dim = file.get_int_or(name + ".rope.dimension_count", cfg.d_head);
  const auto key = name + ".rope.scaling.type";
  const auto scaling = file.get_string_or(key, "none");
  if (scaling == "none") return;
  check<ConfigError>(scaling == "linear", "GGUF: ", key, " must be none or linear, got '", scaling, "'");
  cfg.rotary_scaling.type = scaling;
  cfg.rotary_scaling.factor = file.get_float(name + ".rope.scaling.factor");
}

/// Which layers see a window of keys. Converters write its size, most of them not the layers.
void read_windows(const io::GgufFile& file, const std::string& name, const Family& family, Config& cfg) {
  const auto key = name + ".attention.sliding_window";
  const bool required =
      family.gguf_window_period > 1;  // some layers have one: without its size they cannot be run
  const auto window = required ? file.get_int(key) : file.get_int_or(key, 0);
  const auto pattern_key = key + "_pattern";
  auto period = family.gguf_window_period;
  std::vector<int64_t> pattern;  // non-zero: local
  if (file.has_key(pattern_key)) {
    const auto value = file.value(pattern_key);
    if (std::holds_alternative<int64_t>(value)) {
      period = std::get<int64_t>(value);
    } else {
      pattern = file.get_ints(pattern_key);
      check<ConfigError>(static_cast<int64_t>(pattern.size()) == cfg.n_layers, "GGUF: ", pattern_key,
                         " must have ", cfg.n_layers, " elements, got ", pattern.size());
    }
  }
  if (window == 0 || (period == 0 && pattern.empty())) return;
  cfg.window_size = window;
  for (int64_t layer = 0; layer < cfg.n_layers; ++layer) {
    const bool local =
        pattern.empty() ? period == 1 || (layer + 1) % period != 0 : pattern[static_cast<size_t>(layer)] != 0;
    cfg.attn_types.push_back(local ? "local" : "global");
  }
}

}  // namespace

Architecture architecture_of_gguf(const io::GgufFile& file) {
  const auto name = file.architecture();
  const Family& family = family_of(name);
  check_options(file, name);
  const auto key = [&](const char* rest) { return name + "." + rest; };

  Config cfg = family.common;
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
  cfg.eps = file.get_float(key(cfg.normalization_type == "LN" ? "attention.layer_norm_epsilon"
                                                              : "attention.layer_norm_rms_epsilon"));
  if (cfg.positional_embedding_type == "rotary") read_rotary(file, name, cfg);
  read_windows(file, name, family, cfg);

  const bool by_width = cfg.n_layers == family.layers_scaled_by_width;
  cfg.attn_scale = std::sqrt(static_cast<double>(by_width ? cfg.d_model / cfg.n_heads : cfg.d_head));
  cfg.attn_scores_soft_cap = file.get_float_or(key("attn_logit_softcapping"), cfg.attn_scores_soft_cap);
  cfg.output_logits_soft_cap = file.get_float_or(key("final_logit_softcapping"), cfg.output_logits_soft_cap);
  // transformers holds the factor in float32, whatever the model's dtype.
  if (family.embed_scaled_by_width) cfg.embed_scale = std::sqrt(static_cast<float>(cfg.d_model));
  cfg.parallel_attn_mlp = file.get_bool_or(key("use_parallel_residual"), cfg.parallel_attn_mlp);

  cfg.qkv_bias = cfg.qkv_bias || file.has("blk.0.attn_q.bias");
  cfg.attn_out_bias = cfg.attn_out_bias || file.has("blk.0.attn_output.bias");
  cfg.mlp_bias = cfg.mlp_bias || file.has("blk.0.ffn_up.bias");
  cfg.tie_word_embeddings = !file.has("output.weight");
  cfg.validate();
  return {cfg, family.gguf_names};
}

}  // namespace introspect::models

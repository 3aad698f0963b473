#include <algorithm>
#include <cmath>
#include <variant>

#include "core/excerpt.h"
#include "introspect/core/check.h"
#include "models/architecture.h"
#include "models/unsupported.h"

namespace introspect::models {

namespace {

const Family& family_of(const std::string& name, bool is_mixture) {
  std::string known;
  for (const auto& family : families()) {
    if (name == family.gguf && family.common.is_mixture() == is_mixture) return family;
    if (known.find(family.gguf) == std::string::npos) known += concat(known.empty() ? "" : ", ", family.gguf);
  }
  check<ConfigError>(!is_mixture, "GGUF: a mixture of experts of the architecture ", excerpt(name),
                     ", which this library does not run");
  const auto what = name == "controlvector" ? "a control vector and no model" : what_is(name);
  throw ConfigError(concat("GGUF: general.architecture must be one of ", known, ", got ", excerpt(name),
                           what.empty() ? "" : concat(", ", what)));
}

/// The metadata of one architecture, and what llama.cpp takes for keys that older files do not have.
/// Source: ggml-org/llama.cpp, src/llama-model.cpp, load_hparams.
struct Keys {
  const io::GgufFile& file;
  std::string architecture;

  std::string key(const char* rest) const { return architecture + "." + rest; }
  bool has(const char* rest) const { return file.has_key(key(rest)); }
  double number(const char* rest, double otherwise) const { return file.get_float_or(key(rest), otherwise); }

  int64_t size(const char* rest) const { return checked(rest, whole(rest)); }
  int64_t size(const char* rest, int64_t otherwise) const { return has(rest) ? size(rest) : otherwise; }

 private:
  int64_t checked(const char* rest, int64_t value) const {
    check<ConfigError>(value > 0 && value < kLargestSize, "GGUF: ", key(rest), " must be from 1 to ",
                       kLargestSize - 1, ", got ", value);
    return value;
  }
  /// A number, or one for each layer, of which all are equal.
  int64_t whole(const char* rest) const {
    const auto value = file.value(key(rest));
    const auto* const by_layer = std::get_if<std::vector<int64_t>>(&value);
    if (by_layer == nullptr) return file.get_int(key(rest));
    check<ConfigError>(!by_layer->empty() && std::ranges::count(*by_layer, by_layer->front()) ==
                                                 static_cast<std::ptrdiff_t>(by_layer->size()),
                       "GGUF: ", key(rest), " must be the same in every layer, which this library runs only");
    return by_layer->front();
  }
};

void check_options(const Keys& keys) {
  const auto type = keys.file.get_string_or("general.type", "model");
  check<ConfigError>(type == "model", "GGUF: general.type must be model, got ", excerpt(type),
                     type == "adapter" ? ": a LoRA adapter; merge it into its model" : "");
  check<ConfigError>(
      keys.file.get_int_or(keys.key("expert_shared_count"), 0) == 0 &&
          keys.file.get_int_or(keys.key("leading_dense_block_count"), 0) == 0,
      "GGUF: a mixture of experts with shared experts or plain MLPs, which this library does not run");
  check<ConfigError>(keys.file.get_bool_or(keys.key("attention.causal"), true),
                     "GGUF: ", keys.key("attention.causal"), " is false, which this library does not run");
}

std::vector<double> numbers(const io::GgufFile& file, const char* name) {
  check<ConfigError>(file.has(name), "GGUF: the tensor ", name,
                     " is missing, and the rope scaling is longrope");
  const auto values = file.read(name, torch::kFloat64).flatten();
  const double* first = values.const_data_ptr<double>();
  return {first, first + values.numel()};
}

/// Scaling for longer texts, as llama.cpp reads it: yarn's factor of attention is 1 + 0.1 log(factor), times attn_factor.
void read_scaling(const Keys& keys, const std::string& type, double factor, Config& cfg) {
  auto& s = cfg.rotary_scaling;
  s.type = type;
  s.factor = factor;
  if (type == "linear") return;
  s.original_max_position =
      keys.number("rope.scaling.original_context_length", static_cast<double>(cfg.n_ctx));
  s.attention_factor = keys.number("rope.scaling.attn_factor", 1.0);
  if (type == "yarn") {
    s.beta_fast = keys.number("rope.scaling.yarn_beta_fast", s.beta_fast);
    s.beta_slow = keys.number("rope.scaling.yarn_beta_slow", s.beta_slow);
    const double extrapolated = keys.number("rope.scaling.yarn_ext_factor", 1.0);
    check<ConfigError>(extrapolated == 1 || extrapolated == -1,
                       "GGUF: ", keys.key("rope.scaling.yarn_ext_factor"),
                       " must be 1, which this library runs only, got ", extrapolated);
    if (factor > 1) s.attention_factor *= 1 + 0.1 * std::log(factor);
  } else {
    s.short_factor = numbers(keys.file, "rope_factors_short.weight");
    s.long_factor = numbers(keys.file, "rope_factors_long.weight");
  }
}

void read_rotary(const Keys& keys, const WeightMap& map, Config& cfg) {
  cfg.rotary_base = keys.number("rope.freq_base", 10000.0);
  if (cfg.rotary_base_local > 0)
    cfg.rotary_base_local = keys.number("rope.freq_base_swa", cfg.rotary_base_local);
  cfg.rotary_dim = keys.size("rope.dimension_count", cfg.d_head);
  check<ConfigError>(!map.interleaved_rotary || cfg.rotary_dim == cfg.d_head,
                     "GGUF: ", keys.key("rope.dimension_count"), " must be ", cfg.d_head, ", a head's, got ",
                     cfg.rotary_dim);
  // Files without a type scale linearly; scale_linear is the factor's older name, and 0 stands for none.
  const bool has_factors =
      keys.file.has("rope_factors_long.weight") || keys.file.has("rope_factors_short.weight");
  const auto type =
      keys.file.get_string_or(keys.key("rope.scaling.type"), has_factors ? "longrope" : "linear");
  check<ConfigError>(!has_factors || type == "longrope", "GGUF: ", keys.key("rope.scaling.type"),
                     " must be longrope in a file with rope_factors, got ", excerpt(type));
  if (type == "none") return;
  check<ConfigError>(type == "linear" || type == "yarn" || type == "longrope",
                     "GGUF: ", keys.key("rope.scaling.type"), " must be none, linear, yarn or longrope, got ",
                     excerpt(type));
  const auto factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0));
  check<ConfigError>(type != "linear" || keys.number("rope.scaling.attn_factor", 1.0) == 1.0,
                     "GGUF: ", keys.key("rope.scaling.attn_factor"),
                     " must be 1, which this library runs only");
  if (type == "longrope" || (factor != 0 && factor != 1)) read_scaling(keys, type, factor, cfg);
}

int64_t default_window(const Family& family, const Config& cfg) {
  const auto is = [](int64_t wanted, int64_t size) { return wanted == 0 || wanted == size; };
  for (const auto& one : family.gguf_windows)
    if (is(one.n_layers, cfg.n_layers) && is(one.n_key_value_heads, cfg.n_key_value_heads) &&
        is(one.n_ctx, cfg.n_ctx))
      return one.window;
  return 0;
}

/// Which layers see a window of keys. Converters write its size, most of them not the layers.
void read_windows(const Keys& keys, const Family& family, Config& cfg) {
  const char* const window_key = "attention.sliding_window";
  const auto window = keys.file.get_int_or(keys.key(window_key), default_window(family, cfg));
  check<ConfigError>(window >= 0 && window < kLargestSize, "GGUF: ", keys.key(window_key),
                     " must be from 0 to ", kLargestSize - 1, ", got ", window);
  const auto pattern_key = keys.key("attention.sliding_window_pattern");
  auto period = family.gguf_window_period;
  std::vector<int64_t> pattern;  // non-zero: local
  if (keys.file.has_key(pattern_key)) {
    const auto value = keys.file.value(pattern_key);
    if (std::holds_alternative<int64_t>(value)) {
      period = std::get<int64_t>(value);
      check<ConfigError>(period > 0, "GGUF: ", pattern_key, " must be positive, got ", period);
    } else {
      pattern = keys.file.get_ints(pattern_key);
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

/// The rows of the embedding: the only place where files of all ages have the size of the vocabulary.
int64_t vocabulary(const io::GgufFile& file) {
  const char* const name = "token_embd.weight";
  check<ConfigError>(file.has(name), "GGUF: the tensor ", name, " is missing");
  const auto shape = file.shape(name);
  check<ConfigError>(shape.size() == 2, "GGUF: the tensor ", name, " must have 2 dimensions, got ",
                     shape.size());
  return shape.front();
}

}  // namespace

Architecture architecture_of_gguf(const io::GgufFile& file) {
  const auto name = file.architecture();
  const Keys keys{file, name};
  const auto n_experts = file.get_int_or(keys.key("expert_count"), 0);
  const Family& family = family_of(name, n_experts != 0);
  check_options(keys);

  Config cfg = family.common;
  cfg.original_architecture = family.hf;
  cfg.n_layers = keys.size("block_count");
  // Every layer has tensors: a number that is made up is not believed, since lists are as long as it.
  const auto n_tensors = static_cast<int64_t>(file.names().size());
  check<ConfigError>(cfg.n_layers <= n_tensors, "GGUF: ", keys.key("block_count"), " must fit the file's ",
                     n_tensors, " tensors, got ", cfg.n_layers);
  cfg.d_model = keys.size("embedding_length");
  cfg.n_heads = keys.size("attention.head_count");
  cfg.n_key_value_heads = keys.size("attention.head_count_kv", cfg.n_heads);
  cfg.d_head = keys.size("attention.key_length", cfg.d_model / cfg.n_heads);
  const auto d_value = keys.size("attention.value_length", cfg.d_head);
  check<ConfigError>(d_value == cfg.d_head, "GGUF: ", keys.key("attention.value_length"),
                     " must be key_length, ", cfg.d_head, ", got ", d_value);
  cfg.d_mlp = keys.size("feed_forward_length");
  if (family.common.is_mixture()) {
    cfg.num_experts = keys.size("expert_count");
    cfg.experts_per_token = keys.size("expert_used_count");
    cfg.d_mlp = keys.size("expert_feed_forward_length", cfg.d_mlp);
  }
  cfg.d_vocab = vocabulary(file);
  cfg.n_ctx = keys.size("context_length");
  cfg.eps = file.get_float(keys.key(cfg.normalization_type == "LN" ? "attention.layer_norm_epsilon"
                                                                   : "attention.layer_norm_rms_epsilon"));
  if (cfg.positional_embedding_type == "rotary") read_rotary(keys, family.gguf_names, cfg);
  read_windows(keys, family, cfg);

  const bool by_width = cfg.n_layers == family.layers_scaled_by_width;
  cfg.attn_scale = std::sqrt(static_cast<double>(by_width ? cfg.d_model / cfg.n_heads : cfg.d_head));
  // Keys that llama.cpp reads for some families only: elsewhere they have no effect there.
  const bool is_gemma = family.gguf.starts_with("gemma");
  if (cfg.attn_scores_soft_cap > 0)
    cfg.attn_scores_soft_cap = keys.number("attn_logit_softcapping", cfg.attn_scores_soft_cap);
  if (is_gemma)
    cfg.output_logits_soft_cap = keys.number("final_logit_softcapping", cfg.output_logits_soft_cap);
  // transformers holds the factor in float32, whatever the model's dtype.
  if (family.embed_scaled_by_width) cfg.embed_scale = std::sqrt(static_cast<float>(cfg.d_model));
  if (family.gguf == "gptneox")
    cfg.parallel_attn_mlp = file.get_bool_or(keys.key("use_parallel_residual"), cfg.parallel_attn_mlp);

  cfg.qkv_bias = cfg.qkv_bias || file.has("blk.0.attn_q.bias");
  cfg.attn_out_bias = cfg.attn_out_bias || file.has("blk.0.attn_output.bias");
  if (name == "olmo2" && !cfg.attn_types.empty()) {  // OLMo 3's: layers with a window are not scaled
    cfg.original_architecture = "Olmo3ForCausalLM";
    cfg.rotary_base_local = cfg.rotary_base;
  }
  cfg.mlp_bias = cfg.mlp_bias || file.has("blk.0.ffn_up.bias");
  cfg.tie_word_embeddings = !file.has("output.weight");
  cfg.validate();
  return {cfg, family.gguf_names};
}

}  // namespace introspect::models

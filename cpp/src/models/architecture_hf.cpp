#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "core/json.h"
#include "introspect/core/check.h"
#include "introspect/ops/activation.h"
#include "models/architecture.h"
#include "models/config_fields.h"
#include "models/rope_config.h"
#include "models/unsupported.h"

namespace introspect::models {

namespace {

using nlohmann::json;
/// Numbers that JSON does not have, as transformers 5 writes them: {"__float__": "Infinity"}.
void decode_floats(json& value) {
  if (value.is_object() && value.size() == 1 && value.contains("__float__")) {
    const auto& word = value.at("__float__");
    for (const auto& [name, number] :
         {std::pair("NaN", std::nan("")), std::pair("Infinity", HUGE_VAL), std::pair("-Infinity", -HUGE_VAL)})
      if (word == name) {
        value = number;
        return;
      }
  }
  if (value.is_structured())
    for (auto& inner : value) decode_floats(inner);
}

const Family& family_of(const json& config) {
  // A config that was never saved names no architecture, only its type.
  std::string type, name;
  if (const auto found = config.find("model_type"); found != config.end() && found->is_string())
    type = found->get<std::string>();
  if (const auto found = config.find("architectures"); found != config.end() && !found->is_null()) {
    const auto names = field_of(config, "architectures");
    if (names.list() > 0) name = names.at(0).text();
  }
  std::string known;
  for (const auto& family : families()) {
    if (name.empty() ? type == family.model_type : name == family.hf) {
      // transformers goes by the type, and files by which class they are of: no telling which of two is meant.
      check<ConfigError>(type.empty() || type == family.model_type, kConfigJson, "'model_type' must be '",
                         family.model_type, "' beside 'architectures' of ", family.hf, ", got ",
                         excerpt(type));
      return family;
    }
    known += concat(known.empty() ? "" : ", ", family.hf);
  }
  const auto what = what_is(name, type);
  throw ConfigError(concat(kConfigJson, "'architectures' must be one of ", known, ", got ",
                           excerpt(name.empty() ? type : name), what.empty() ? "" : concat(", ", what)));
}

/// What no model of these families has that this library runs.
void check_options(const json& config, const Family& family) {
  const auto is_there = [&](const char* key) {
    const auto found = config.find(key);
    return found != config.end() && !found->is_null();
  };
  for (const char* key : {"num_local_experts", "num_experts"})
    check<ConfigError>(family.common.is_mixture() || !is_there(key) || field_of(config, key).integer() <= 1,
                       kConfigJson, "a mixture of experts ('", key, "'), which this library does not run");
  for (const char* key :
       {"use_bidirectional_attention", "scale_attn_by_inverse_layer_idx", "add_cross_attention"})
    check<ConfigError>(!is_there(key) || !field_of(config, key).boolean(), kConfigJson, "'", key,
                       "' is true, which this library does not run");
  if (is_there("mlp_only_layers"))
    field_of(config, "mlp_only_layers")
        .require(field_of(config, "mlp_only_layers").list() == 0,
                 "must be empty: a mixture of experts with plain MLPs in some layers is not run");
  if (is_there("decoder_sparse_step"))
    field_of(config, "decoder_sparse_step")
        .require(field_of(config, "decoder_sparse_step").integer() == 1,
                 "must be 1: a mixture of experts with plain MLPs in some layers is not run");
  for (const auto& [key, value] :
       {std::pair("swiglu_alpha", ops::kSwigluAlpha), std::pair("swiglu_limit", ops::kSwigluLimit)})
    if (family.common.act_fn == "swiglu_clamped" && is_there(key))
      field_of(config, key)
          .require(field_of(config, key).number() == value, "must be ", value,
                   ", which this library runs only");
  check<ConfigError>(!is_there("per_layer_config"), kConfigJson,
                     "'per_layer_config' gives layers sizes of their own, which this library does not run");
}

/// How the weights are packed, where they are.
std::optional<io::Packing> read_packing(const json& config, const Family& family) {
  const char* const key = "quantization_config";
  if (const auto found = config.find(key); found == config.end() || found->is_null()) return std::nullopt;
  const auto field = field_of(config, key);
  field.object();
  const auto& given = config.at(key);
  const auto has = [&](const char* name) { return given.contains(name) && !given.at(name).is_null(); };
  const auto word = [&](const char* name, const char* otherwise) {
    return has(name) ? field.at(name).text() : std::string(otherwise);
  };
  const auto whole = [&](const char* name, int64_t otherwise) {
    return has(name) ? field.at(name).integer() : otherwise;
  };
  const auto method = word("quant_method", "");
  io::Packing out;
  if (method == "mxfp4" && family.common.attn_sinks) {
    out.method = io::Packing::Method::mxfp4;
    return out;
  }
  // Of two kinds in one file, and each matrix says which it is.
  if (method == "bitsandbytes") {
    out.method = io::Packing::Method::bitsandbytes;
    return out;
  }
  check<ConfigError>(
      method == "gptq" || method == "awq", kConfigJson, "the weights are quantised by ",
      excerpt(method.empty() ? describe(given) : method),
      ", which this library does not read; it reads safetensors in float formats, GPTQ, AWQ and "
      "gpt-oss's MXFP4, and GGUF");
  out.bits = whole("bits", 4);
  out.group_size = whole("group_size", -1);
  field.require(out.group_size == -1 || out.group_size > 0, "must have a positive group_size, or -1, got ",
                out.group_size);
  if (method == "gptq") {
    field.require(out.bits == 2 || out.bits == 4 || out.bits == 8, "must be of 2, 4 or 8 bits, got ",
                  out.bits);
    const auto format = word("checkpoint_format", "gptq");
    field.require(format == "gptq" || format == "gptq_v2",
                  "must have the checkpoint_format gptq or gptq_v2, got ", excerpt(format));
    out.zero_offset = format == "gptq" ? 1 : 0;
    return out;
  }
  out.method = io::Packing::Method::awq;
  field.require(out.bits == 4, "must be of 4 bits, got ", out.bits);
  const auto version = word("version", "gemm");
  field.require(version == "gemm" || version == "GEMM", "must have the version gemm, got ", excerpt(version));
  field.require(!has("zero_point") || field.at("zero_point").boolean(), "must have zero points");
  return out;
}

std::string activation(const Field& field) {
  const auto name = field.text();
  if (name == "silu" || name == "swish") return "silu";
  if (name == "gelu" || name == "gelu_python") return "gelu";
  // One formula: gelu_fast writes sqrt(2 / pi) with ten digits.
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return "gelu_new";
  field.require(false, "must be silu, gelu or gelu_pytorch_tanh, got ", excerpt(name));
  return {};
}

// ---- windows --------------------------------------------------------------------------------------------------------

/// Which layers see a window of keys: 'layer_types', or the family's rule for files that leave it out.
void read_windows(const Fields& config, const Family& family, Config& cfg) {
  if (!config.has("sliding_window")) return;
  const bool is_used = !config.has("use_sliding_window") || config.at("use_sliding_window").boolean();
  const bool has_window = is_used && !config.is_null("sliding_window");
  const auto n_layers = static_cast<size_t>(cfg.n_layers);
  std::vector<std::string> types;
  if (config.has("layer_types") && !config.is_null("layer_types")) {
    const auto given = config.at("layer_types");
    given.require(given.list() == n_layers, "must name each of the ", n_layers, " layers, got ",
                  given.list());
    for (size_t layer = 0; layer < n_layers; ++layer) {
      const auto type = given.at(layer).text();
      given.at(layer).require(type == "full_attention" || type == "sliding_attention",
                              "must be full_attention or sliding_attention, got ", excerpt(type));
      types.push_back(type == "full_attention" ? "global" : "local");
    }
  } else if (family.hf_window_period == 1) {  // all or none
    if (has_window) types.assign(n_layers, "local");
  } else if (config.has("max_window_layers")) {
    const auto first = config.at("max_window_layers").integer();
    for (int64_t layer = 0; has_window && layer < cfg.n_layers; ++layer)
      types.push_back(layer >= first ? "local" : "global");
  } else {
    const auto period = config.has("sliding_window_pattern") ? config.size("sliding_window_pattern")
                                                             : family.hf_window_period;
    for (int64_t layer = 0; layer < cfg.n_layers; ++layer)
      types.push_back((layer + 1) % period != 0 ? "local" : "global");
  }
  if (std::ranges::find(types, "local") == types.end()) return;
  check<ConfigError>(is_used, kConfigJson,
                     "'layer_types' has layers with a window, but 'use_sliding_window' is false");
  check<ConfigError>(has_window, kConfigJson,
                     "'sliding_window' is missing, and layers of this model have one");
  cfg.window_size = config.size("sliding_window");
  cfg.attn_types = std::move(types);
}

// ---- the whole ------------------------------------------------------------------------------------------------------

Config read_config(const json& given, const Family& family, int64_t n_tensors) {
  const Fields config(given, family.hf_defaults);
  Config cfg = family.common;
  cfg.original_architecture = family.hf;
  const char* const layers = config.name({"num_hidden_layers", "n_layer"});
  cfg.n_layers = config.size(layers);
  // Every layer has tensors: a number that is made up is not believed, since lists are as long as it.
  check<ConfigError>(cfg.n_layers <= n_tensors, kConfigJson, "'", layers, "' must fit the files' ", n_tensors,
                     " tensors, got ", cfg.n_layers);
  cfg.d_model = config.size(config.name({"hidden_size", "n_embd"}));
  cfg.n_heads = config.size(config.name({"num_attention_heads", "n_head"}));
  const bool groups = config.has("num_key_value_heads") && !config.is_null("num_key_value_heads");
  cfg.n_key_value_heads = groups ? config.size("num_key_value_heads") : cfg.n_heads;
  const bool has_head_dim =
      config.has("head_dim") && !(config.is_null("head_dim") && config.follows("head_dim"));
  cfg.d_head = has_head_dim ? config.size("head_dim") : cfg.d_model / cfg.n_heads;
  if (family.hf_names.qkv_by_head && given.contains("head_dim"))
    field_of(given, "head_dim")
        .require(given.at("head_dim") == cfg.d_head, "must be ", cfg.d_head, " in this family, got ",
                 describe(given.at("head_dim")));
  const bool is_multiple = config.has("n_inner") && config.is_null("n_inner");
  cfg.d_mlp = is_multiple
                  ? 4 * cfg.d_model
                  : config.size(config.name({"intermediate_size", "moe_intermediate_size", "n_inner"}));
  cfg.d_vocab = config.size("vocab_size");
  cfg.n_ctx = config.size(config.name({"max_position_embeddings", "n_positions"}));
  if (cfg.act_fn != "swiglu_clamped")  // whose family writes a hidden_act that it does not use
    cfg.act_fn =
        activation(config.at(config.name({"hidden_act", "hidden_activation", "activation_function"})));
  if (family.common.is_mixture()) {
    cfg.num_experts = config.size(config.name({"num_experts", "num_local_experts"}));
    cfg.experts_per_token = config.size("num_experts_per_tok");
    if (config.has("norm_topk_prob")) cfg.norm_topk_prob = config.at("norm_topk_prob").boolean();
  }
  const auto eps = config.at(config.name({"rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"}));
  cfg.eps = eps.number();
  eps.require(cfg.eps >= 0 && cfg.eps <= 1, "must be from 0 to 1, got ", cfg.eps);
  if (config.has("attention_bias")) cfg.qkv_bias = cfg.attn_out_bias = config.at("attention_bias").boolean();
  if (config.has("mlp_bias")) cfg.mlp_bias = config.at("mlp_bias").boolean();
  cfg.tie_word_embeddings = config.at("tie_word_embeddings").boolean();
  if (config.has("use_parallel_residual"))
    cfg.parallel_attn_mlp = config.at("use_parallel_residual").boolean();

  const bool is_scaled = !config.has("scale_attn_weights") || config.at("scale_attn_weights").boolean();
  const bool has_scalar = config.has("query_pre_attn_scalar");
  const auto scalar =
      has_scalar ? config.at("query_pre_attn_scalar").number() : static_cast<double>(cfg.d_head);
  check<ConfigError>(scalar > 0, kConfigJson, "'query_pre_attn_scalar' must be positive, got ", scalar);
  cfg.attn_scale = is_scaled ? std::sqrt(scalar) : 1.0;
  const auto soft_cap = [&](const char* key) {
    if (!config.has(key) || config.is_null(key)) return 0.0;
    const auto cap = config.at(key).number();
    config.at(key).require(cap > 0, "must be positive, got ", cap);
    return cap;
  };
  // Gemma 3's config has the field of Gemma 2's, and transformers' model makes no use of it.
  if (family.common.attn_scores_soft_cap > 0) cfg.attn_scores_soft_cap = soft_cap("attn_logit_softcapping");
  cfg.output_logits_soft_cap = soft_cap("final_logit_softcapping");
  // transformers holds the factor in float32, whatever the model's dtype.
  if (family.embed_scaled_by_width) cfg.embed_scale = std::sqrt(static_cast<float>(cfg.d_model));

  if (cfg.positional_embedding_type == "rotary") read_rotary(given, config, family, cfg);
  read_windows(config, family, cfg);
  cfg.validate();
  return cfg;
}

/// GPT-2's class has its own names, and takes the usual ones for them; those come first where both are given. The number
/// of experts has two names, of which a class takes either.
void rename_fields(json& config, const Family& family) {
  const auto fields = json::parse(family.hf_defaults);
  for (const auto& [own, other] :
       {std::pair("num_experts", "num_local_experts"), std::pair("num_local_experts", "num_experts")})
    if (fields.contains(own) && !config.contains(own) && config.contains(other))
      config[own] = config.at(other);
  if (!fields.contains("n_embd")) return;
  for (const auto& [usual, own] :
       {std::pair("hidden_size", "n_embd"), std::pair("num_hidden_layers", "n_layer"),
        std::pair("num_attention_heads", "n_head"), std::pair("max_position_embeddings", "n_positions")})
    if (config.contains(usual)) config[own] = config.at(usual);
}

}  // namespace

Architecture architecture_of_hf(const json& config, int64_t n_tensors) {
  check<ConfigError>(config.is_object(), kConfigJson, "must hold an object");
  const Family& family = family_of(config);
  check_options(config, family);
  json text = config;
  if (config.contains("text_config")) {  // of a model that sees images too
    text = config.at("text_config");
    Field(text, kConfigJson, "'text_config'").object();
    check_options(text, family);
  }
  decode_floats(text);
  rename_fields(text, family);
  return {read_config(text, family, n_tensors), family.hf_names, read_packing(config, family)};
}

}  // namespace introspect::models

// SAELens: cfg.json and sae_weights.safetensors in a folder, W_enc [d_in, d_sae], W_dec [d_sae, d_out].
// Source: decoderesearch/SAELens 6.54.12, sae_lens/saes/*.py and loading/pretrained_sae_loaders.py (handle_pre_6_0_config).
#include <array>
#include <utility>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/io/safetensors.h"
#include "introspect/sae/whitening.h"

#include "core/excerpt.h"
#include "core/json.h"
#include "sae/formats/format.h"
#include "sae/formats/saelens.h"

namespace introspect::sae::formats {
namespace {

using Json = nlohmann::json;

/// A field that may be missing or null.
template <typename T>
T value_or(const Json& json, const std::string& key, T other) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return other;
  try {
    return found->get<T>();
  } catch (const Json::exception& error) {
    throw IoError(concat("cfg.json: ", key, ": ", plain_reason(error)));
  }
}

/// Before version 6 one flat object with other names. Returns it as version 6 has it: {.., metadata: {..}}.
Json as_version_6(const Json& cfg) {
  const auto metadata = value_or(cfg, "metadata", Json::object());
  auto version =
      value_or<std::string>(cfg, "sae_lens_version", value_or<std::string>(metadata, "sae_lens_version", ""));
  const auto dot = version.find('.');
  const bool is_later = dot >= 2 && dot != std::string::npos;  // 10.0 and later
  if (is_later || (!version.empty() && version[0] >= '6' && (version.size() == 1 || dot == 1))) {
    for (const char* key : {"activation_fn", "activation_fn_str"}) {
      const auto activation = value_or<std::string>(cfg, key, "relu");
      check<ConfigError>(activation == "relu", key, " ", excerpt(activation),
                         " is of files before version 6; this one says version ", excerpt(version));
    }
    return cfg;
  }
  Json out = cfg;
  for (const auto& [old, name] : {std::pair{"hook_point", "hook_name"},
                                  {"hook_point_head_index", "hook_head_index"},
                                  {"activation_fn_str", "activation_fn"}})
    if (cfg.contains(old)) out[name] = cfg[old];
  if (!out.contains("architecture")) out["architecture"] = "standard";
  if (!out.contains("prepend_bos")) out["prepend_bos"] = true;
  if (!out.contains("apply_b_dec_to_input")) out["apply_b_dec_to_input"] = true;
  const auto activation = value_or<std::string>(out, "activation_fn", "relu");
  const auto arguments = value_or(out, "activation_fn_kwargs", Json::object());
  if (activation == "topk" && arguments.contains("k")) {
    out["architecture"] = "topk";
    out["k"] = arguments["k"];
  } else {
    check<ConfigError>(activation == "relu", "activation_fn must be relu or topk with its k, got ",
                       excerpt(activation));
  }
  if (const auto found = out.find("normalize_activations"); found != out.end() && found->is_boolean())
    out["normalize_activations"] = found->get<bool>() ? "expected_average_only_in" : "none";
  Json kept = metadata;
  for (const char* key :
       {"model_name", "hook_name", "hook_head_index", "hook_name_out", "model_from_pretrained_kwargs",
        "prepend_bos", "context_size", "dataset_path", "neuronpedia_id"})
    if (out.contains(key) && !kept.contains(key)) kept[key] = out[key];
  out["metadata"] = kept;
  return out;
}

/// "jumprelu_skip_transcoder" is jumprelu, of a transcoder, with a skip.
struct Kind {
  Architecture architecture;
  bool is_transcoder = false, has_skip = false, is_crosscoder = false, is_signed = false, is_training = false;
};

Kind kind_of(std::string name) {
  const auto whole = name;
  Kind out{};
  const auto drop = [&](const std::string& end) {
    if (!name.ends_with(end)) return false;
    name.erase(name.size() - end.size());
    if (name.ends_with('_')) name.pop_back();
    return true;
  };
  out.is_crosscoder = drop("crosscoder");
  out.is_transcoder = drop("transcoder");
  if (out.is_transcoder) out.has_skip = drop("skip");
  if (name.empty() && out.is_transcoder) name = "standard";
  if (name == kSignedTopk) {
    out.is_signed = true;
    name = "topk";
  }
  if (name == "matryoshka_batchtopk") name = "batchtopk";
  for (const auto architecture : {Architecture::standard, Architecture::gated, Architecture::topk,
                                  Architecture::abstopk, Architecture::batchtopk, Architecture::jumprelu,
                                  Architecture::matching_pursuit, Architecture::groupmax})
    if (name == to_string(architecture)) {
      out.architecture = architecture;
      return out;
    }
  throw ConfigError(concat(
      "the architecture ", excerpt(whole),
      " is not known: standard, gated, topk, abstopk, batchtopk, jumprelu, matching_pursuit and groupmax "
      "are, with and without _transcoder or _skip_transcoder"));
}

DictionaryOrigin origin_of(const Json& cfg, int64_t d_in, int64_t d_out, bool is_transcoder) {
  const auto metadata = value_or(cfg, "metadata", Json::object());
  DictionaryOrigin out;
  const auto hook = value_or<std::string>(metadata, "hook_name", ""),
             hook_out = value_or<std::string>(metadata, "hook_name_out", is_transcoder ? "" : hook);
  set_sites(out, hook, d_in, hook_out, d_out);
  out.model_name = value_or<std::string>(metadata, "model_name", "");
  const auto optional = [&]<typename T>(const char* key, std::optional<T>& to) {
    if (metadata.contains(key) && !metadata[key].is_null()) to = value_or<T>(metadata, key, T{});
  };
  optional("context_size", out.context_size);
  optional("prepend_bos", out.prepend_bos);
  out.centers_writing_weights = value_or(value_or(metadata, "model_from_pretrained_kwargs", Json::object()),
                                         "center_writing_weights", false);
  out.notes = cfg.dump();
  const auto own = value_or(metadata, kOwn, Json::object());
  if (own.empty()) return out;
  out.model_hash = value_or<std::string>(own, "model_hash", "");
  out.release = value_or<std::string>(own, "release", "");
  out.sae_id = value_or<std::string>(own, "sae_id", "");
  out.masks_bos = value_or(own, "masks_bos", false);
  out.notes = value_or<std::string>(own, "notes", "{}");
  for (const auto& [key, to] : {std::pair{"inputs", &out.inputs}, {"outputs", &out.outputs}}) {
    to->clear();
    for (const auto& site : value_or(own, key, Json::array()))
      to->push_back({value_or<std::string>(site, "hook_name", ""), value_or<int64_t>(site, "width", 0),
                     value_or<int64_t>(site, "model", 0)});
  }
  return out;
}

/// What is done to inputs, by SAELens's word. The scale of "expected_average_only_in" stands in no such file unless it is a
/// checkpoint of training: SAELens folds it in when it saves, and leaves it out where it does not know it.
void set_input_norm(Found& found, const Json& cfg, DictionaryConfig& config) {
  const auto word = value_or<std::string>(cfg, "normalize_activations", "none");
  const auto own = value_or(value_or(cfg, "metadata", Json::object()), kOwn, Json::object());
  config.layer_norm_eps = value_or(own, "layer_norm_eps", config.layer_norm_eps);
  if (word == "none") return;
  if (word == "constant_norm_rescale") {
    config.input_norm = InputNorm::constant_norm;
  } else if (word == "layer_norm") {
    config.input_norm = InputNorm::layer_norm;
  } else if (word == "expected_average_only_in") {
    auto scale = found.options.input_scale;
    if (const auto scaler = found.json("activation_scaler.json"); !scale && scaler.is_object())
      if (const auto s = value_or<double>(scaler, "scaling_factor", 0); s > 0) scale = s;
    check<ConfigError>(
        scale.has_value(),
        "its inputs were scaled to a mean norm of sqrt(d_in) and the file does not say by how much: give "
        "input_scale");
    config.input_norm = InputNorm::scale;
    config.input_scale = *scale;
  } else if (word == "covariance_whitening") {
    return;  // see unwhiten
  } else {
    throw ConfigError(
        "normalize_activations must be none, expected_average_only_in, constant_norm_rescale, layer_norm or "
        "covariance_whitening, got " +
        excerpt(word));
  }
}

/// A checkpoint of training on whitened rows as one of the rows themselves. SAELens folds the map in when training ends, and
/// until then keeps it in a file beside the weights.
void unwhiten(const Found& found, const Json& cfg, DictionaryConfig& config, DictionaryWeights& w) {
  if (value_or<std::string>(cfg, "normalize_activations", "none") != "covariance_whitening") return;
  check<ConfigError>(found.has_file("activation_whitening.safetensors"),
                     "its inputs were whitened and no activation_whitening.safetensors beside it says how");
  const auto file = io::SafetensorsFile::open(found.folder / "activation_whitening.safetensors");
  const auto read = [&](const char* name) { return file->read(name, torch::kFloat64); };
  if (w.threshold_F.defined() && w.threshold_F.numel() == 1)
    w.threshold_F = w.threshold_F.reshape({1}).expand({w.W_dec_FD.size(0)}).contiguous();
  const auto folded = fold_whitening({config, w}, {read("mean"), read("matrix"), read("inverse_matrix")});
  config = folded.config();
  w = folded.weights();
}

/// A gain for each feature, after the activation ("finetuning"): of relu's features a scaling of what goes in.
void fold_gain(Tensors& tensors, const Kind& kind, DictionaryWeights& w) {
  const auto gain = tensors.take_if_there("scaling_factor");
  if (!gain.defined() || gain.eq(1).all().item<bool>()) return;
  check<ConfigError>(kind.architecture == Architecture::standard && gain.gt(0).all().item<bool>(),
                     "scaling_factor must be 1, or above 0 in the architecture standard");
  w.W_enc_FD = w.W_enc_FD * gain.unsqueeze(1);
  if (w.b_enc_F.defined()) w.b_enc_F = w.b_enc_F * gain;
}

bool is_saelens(const Found& found) {
  return found.has_file("cfg.json") && found.tensors.path().filename() == "sae_weights.safetensors" &&
         found.tensors.has("W_dec");
}

void check_sizes(const Json& cfg, const DictionaryWeights& w) {
  const auto same = [&](const char* key, int64_t got) {
    const auto said = value_or<int64_t>(cfg, key, got);
    check<IoError>(said == got, "cfg.json says ", key, " ", said, ", the tensors are of ", got);
  };
  if (w.W_dec_FD.dim() != 2) return;
  same("d_sae", w.W_dec_FD.size(0));
  same("d_out", w.W_dec_FD.size(1));
  if (w.W_enc_FD.defined() && w.W_enc_FD.dim() == 2) same("d_in", w.W_enc_FD.size(1));
}

Parts read_saelens(Found& found) {
  const auto cfg = as_version_6(found.json("cfg.json"));
  auto kind = kind_of(value_or<std::string>(cfg, "architecture", ""));
  auto& tensors = found.tensors;
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  config.architecture = kind.architecture;
  config.subtract_b_dec = !kind.is_transcoder && value_or(cfg, "apply_b_dec_to_input", true);
  config.relu = !kind.is_signed;
  w.W_dec_FD = tensors.take("W_dec");
  w.b_dec_D = tensors.take_if_there("b_dec");
  if (kind.architecture != Architecture::matching_pursuit) w.W_enc_FD = tensors.take("W_enc").t();
  switch (kind.architecture) {
    case Architecture::gated:
      w.b_gate_F = tensors.take("b_gate");
      w.b_mag_F = tensors.take("b_mag");
      w.r_mag_F = tensors.take("r_mag");
      break;
    case Architecture::matching_pursuit:
      tensors.ignore("W_enc");  // W_dec's transpose
      // SAELens adds b_dec to what is decoded only where it is taken off the input.
      if (!config.subtract_b_dec && !kind.is_transcoder) w.b_dec_D = torch::Tensor();
      config.residual_threshold = value_or(cfg, "residual_threshold", config.residual_threshold);
      config.k = static_cast<double>(value_or<int64_t>(cfg, "max_iterations", w.W_dec_FD.size(-1)));
      check<ConfigError>(value_or(cfg, "stop_on_duplicate_support", true),
                         "stop_on_duplicate_support must be true");
      break;
    default:
      w.b_enc_F = tensors.take_if_there("b_enc");
  }
  const bool has_k = kind.architecture == Architecture::topk || kind.architecture == Architecture::abstopk ||
                     kind.architecture == Architecture::batchtopk ||
                     kind.architecture == Architecture::groupmax;
  if (has_k) {
    config.rank_by_decoder_norm = value_or(cfg, "rescale_acts_by_decoder_norm", false);
    config.k = value_or<double>(cfg, "k", found.options.k ? static_cast<double>(*found.options.k) : 0);
    check<ConfigError>(config.k > 0, "cfg.json must say k");
  }
  if (kind.architecture == Architecture::jumprelu) {
    w.threshold_F =
        tensors.has("log_threshold") ? tensors.take("log_threshold").exp() : tensors.take("threshold");
  }
  if (kind.architecture == Architecture::batchtopk && tensors.has("topk_threshold")) {
    // Training's own state: SAELens saves it as jumprelu of this threshold.
    config.architecture = Architecture::jumprelu;
    config.k = 0;
    w.threshold_F = tensors.take("topk_threshold").to(w.W_dec_FD.scalar_type());
  }
  if (kind.has_skip) w.W_skip_DD = tensors.take("W_skip");
  fold_gain(tensors, kind, w);
  set_input_norm(found, cfg, config);
  unwhiten(found, cfg, config, w);
  check_sizes(cfg, w);
  const auto d_in = w.W_enc_FD.defined() ? w.W_enc_FD.size(-1) : w.W_dec_FD.size(-1);
  origin = origin_of(cfg, d_in, w.W_dec_FD.size(-1), kind.is_transcoder);
  if (found.mentions("GPT2-Small-SAEs-Reformatted"))
    origin.centers_writing_weights = true;  // as its authors trained it
  return parts;
}

}  // namespace

const Format kSaelens = {"saelens", "cfg.json and sae_weights.safetensors", is_saelens, read_saelens};

}  // namespace introspect::sae::formats

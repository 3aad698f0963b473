#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "introspect/io/safetensors.h"

#include "sae/formats/format.h"
#include "sae/formats/saelens.h"

namespace introspect::sae::formats {
namespace {

using Json = nlohmann::ordered_json;
using Tensors = std::vector<std::pair<std::string, torch::Tensor>>;

constexpr auto kSaelensVersion = "6.54.12";  // whose layout it is; before 6 the layout was another

const char* dtype_word(torch::ScalarType dtype) {
  switch (dtype) {
    case torch::kFloat64:
      return "float64";
    case torch::kFloat16:
      return "float16";
    case torch::kBFloat16:
      return "bfloat16";
    default:
      return "float32";
  }
}

const char* norm_word(InputNorm norm) {
  switch (norm) {
    case InputNorm::constant_norm:
      return "constant_norm_rescale";
    case InputNorm::layer_norm:
      return "layer_norm";
    default:
      return "none";
  }
}

/// A matching pursuit with b_dec on its output alone is one too: SAELens would drop the b_dec of "matching_pursuit".
bool is_transcoder(const Dictionary& d) {
  const auto& from = d.origin();
  const bool writes_bias = d.config().architecture == Architecture::matching_pursuit &&
                           !d.config().subtract_b_dec && d.weights().b_dec_D.defined();
  return writes_bias || d.weights().W_skip_DD.defined() || d.d_in() != d.d_out() ||
         (!from.inputs.empty() && !from.outputs.empty() && from.inputs != from.outputs);
}

bool is_crosscoder(const Dictionary& d) {
  return d.origin().inputs.size() > 1 || d.origin().outputs.size() > 1;
}

/// b_dec off the input as a part of b_enc: SAELens's transcoders read x as it is.
Dictionary without_input_bias(const Dictionary& d) {
  auto config = d.config();
  auto w = d.weights();
  if (!config.subtract_b_dec || !w.b_dec_D.defined()) return d;
  check<ConfigError>(config.architecture != Architecture::gated &&
                         config.architecture != Architecture::matching_pursuit &&
                         config.input_norm == InputNorm::none,
                     "save_dictionary: a transcoder in SAELens's format has no b_dec on its input");
  const auto shift_F = at::mv(w.W_enc_FD, w.b_dec_D);
  w.b_enc_F = w.b_enc_F.defined() ? w.b_enc_F - shift_F : -shift_F;
  config.subtract_b_dec = false;
  return {config, w, d.origin()};
}

std::string architecture_name(const Dictionary& d) {
  const auto& config = d.config();
  auto name = config.architecture == Architecture::topk && !config.relu ? kSignedTopk
                                                                        : to_string(config.architecture);
  if (is_crosscoder(d)) return name + "_crosscoder";
  if (!is_transcoder(d)) return name;
  const std::string ending = d.weights().W_skip_DD.defined() ? "skip_transcoder" : "transcoder";
  return name == "standard" ? ending : name + "_" + ending;
}

Json site_list(const std::vector<DictionarySite>& sites) {
  auto out = Json::array();
  for (const auto& site : sites)
    out.push_back({{"hook_name", site.hook_name}, {"width", site.width}, {"model", site.model}});
  return out;
}

Json metadata_of(const Dictionary& d) {
  const auto& from = d.origin();
  Json out = {{"sae_lens_version", kSaelensVersion}, {"sae_lens_training_version", nullptr}};
  if (!from.model_name.empty()) out["model_name"] = from.model_name;
  if (!from.inputs.empty()) out["hook_name"] = from.inputs[0].hook_name;
  if (is_transcoder(d) && !from.outputs.empty()) out["hook_name_out"] = from.outputs[0].hook_name;
  if (from.context_size) out["context_size"] = *from.context_size;
  if (from.prepend_bos) out["prepend_bos"] = *from.prepend_bos;
  if (from.centers_writing_weights) out["model_from_pretrained_kwargs"] = {{"center_writing_weights", true}};
  Json own = {{"model_hash", from.model_hash},
              {"inputs", site_list(from.inputs)},
              {"outputs", site_list(from.outputs)},
              {"masks_bos", from.masks_bos},
              {"release", from.release},
              {"sae_id", from.sae_id},
              {"notes", from.notes}};
  if (d.config().input_norm == InputNorm::layer_norm) own["layer_norm_eps"] = d.config().layer_norm_eps;
  out[kOwn] = own;
  return out;
}

Json config_of(const Dictionary& d) {
  const auto& config = d.config();
  const auto& from = d.origin();
  const bool has_heads = !from.inputs.empty() && from.inputs[0].hook_name.ends_with("hook_z");
  Json out = {{"architecture", architecture_name(d)},
              {"d_in", d.d_in()},
              {"d_sae", d.d_sae()},
              {"dtype", dtype_word(d.dtype())},
              {"device", "cpu"},
              {"apply_b_dec_to_input", config.subtract_b_dec},
              {"normalize_activations", norm_word(config.input_norm)},
              {"reshape_activations", has_heads ? "hook_z" : "none"}};
  if (is_transcoder(d) || is_crosscoder(d)) out["d_out"] = d.d_out();
  switch (config.architecture) {
    case Architecture::topk:
    case Architecture::abstopk:
    case Architecture::groupmax:
      out["k"] = static_cast<int64_t>(config.k);
      out["rescale_acts_by_decoder_norm"] = config.rank_by_decoder_norm;
      break;
    case Architecture::batchtopk:
      out["k"] = config.k;
      out["rescale_acts_by_decoder_norm"] = config.rank_by_decoder_norm;
      break;
    case Architecture::matching_pursuit:
      out["max_iterations"] = static_cast<int64_t>(config.k);
      out["residual_threshold"] = config.residual_threshold;
      out["stop_on_duplicate_support"] = true;
      break;
    default:
      break;
  }
  out["metadata"] = metadata_of(d);
  return out;
}

/// Contiguous tensors by SAELens's names; a bias that is not there is one of zeros.
Tensors tensors_of(const Dictionary& d) {
  const auto& w = d.weights();
  const auto zeros = [&](int64_t size) { return at::zeros({size}, w.W_dec_FD.options()); };
  Tensors out{{"W_dec", w.W_dec_FD}, {"b_dec", w.b_dec_D.defined() ? w.b_dec_D : zeros(d.d_out())}};
  if (w.W_enc_FD.defined()) out.emplace_back("W_enc", w.W_enc_FD.t().contiguous());
  if (d.config().architecture != Architecture::gated &&
      d.config().architecture != Architecture::matching_pursuit)
    out.emplace_back("b_enc", w.b_enc_F.defined() ? w.b_enc_F : zeros(d.d_sae()));
  for (const auto& [name, tensor] : {std::pair{"threshold", w.threshold_F},
                                     {"b_gate", w.b_gate_F},
                                     {"b_mag", w.b_mag_F},
                                     {"r_mag", w.r_mag_F},
                                     {"W_skip", w.W_skip_DD}})
    if (tensor.defined()) out.emplace_back(name, tensor);
  return out;
}

/// The same function as the format can say it.
Dictionary expressible(Dictionary d) {
  if (d.config().input_norm == InputNorm::scale) d = d.fold_input_scale();
  const auto architecture = d.config().architecture;
  const bool keeps_norms = architecture == Architecture::topk || architecture == Architecture::abstopk ||
                           architecture == Architecture::batchtopk || architecture == Architecture::groupmax;
  if (d.config().rank_by_decoder_norm && !keeps_norms) d = d.fold_decoder_norm();
  return is_transcoder(d) ? without_input_bias(d) : d;
}

}  // namespace

void save_as_saelens(const Dictionary& dictionary, const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  const auto d = expressible(dictionary);
  const auto tensors = tensors_of(d);
  io::save_safetensors(folder / "sae_weights.safetensors", tensors);
  io::write_atomically(folder / "cfg.json", config_of(d).dump(1) + "\n");
}

}  // namespace introspect::sae::formats

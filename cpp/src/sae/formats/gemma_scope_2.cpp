// Gemma Scope 2 (2025): config.json and params.safetensors, or params_layer_0.safetensors and so on of a crosscoder, in
// google/gemma-scope-2-*. w_enc [d_in, d_sae], w_dec [d_sae, d_out] or [d_sae, sites, d], affine_skip_connection [d_in, d_out]
// (W_skip's transpose), jumprelu, no b_dec on the input.
#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "core/excerpt.h"
#include "core/json.h"
#include "sae/formats/format.h"

namespace introspect::sae::formats {
namespace {

bool is_gemma_scope_2(const Found& found) {
  return found.tensors.path().extension() == ".safetensors" && found.tensors.has("w_enc") &&
         found.tensors.has("threshold");
}

std::string text_of(const nlohmann::json& config, const char* key) {
  const auto found = config.find(key);
  return found != config.end() && found->is_string() ? found->get<std::string>() : "";
}

/// google/gemma-3-1b-pt; of the 270m model the base has no -pt.
std::string model_name(const Found& found, const nlohmann::json& config) {
  auto name = text_of(config, "model_name");
  if (name.empty())
    for (const char* size : {"270m", "1b", "4b", "12b", "27b"})
      for (const char* kind : {"-pt", "-it"})
        if (found.mentions(std::string("gemma-scope-2-") + size + kind))
          name = std::string("gemma-3-") + size + kind;
  if (name.empty()) return name;
  if (const auto at = name.find("-v3"); at != std::string::npos) name.replace(at, 3, "-3");
  if (name.find("google/") == std::string::npos) name = "google/" + name;
  if (const auto at = name.find("270m-pt"); at != std::string::npos) name.erase(at + 4, 3);
  return name;
}

void set_origin(const Found& found, const nlohmann::json& config, Parts& parts) {
  auto& [ignored, w, origin, has_relu] = parts;
  origin.model_name = model_name(found, config);
  origin.context_size = 1024;
  origin.prepend_bos = true;
  if (config.is_object()) origin.notes = config.dump();
  auto in = hook_of_module(text_of(config, "hf_hook_point_in")),
       out = hook_of_module(text_of(config, "hf_hook_point_out"));
  if (const auto layer = found.number_after("layer_"); in.empty() && layer) {
    const auto place = [&](const char* folder, const char* point) {
      if (found.mentions(std::string("/") + folder)) in = block_hook(*layer, point);
    };
    place("resid_post", "hook_resid_post");
    place("attn_out", "attn.hook_z");
    place("mlp_out", "hook_mlp_out");
    place("transcoder", "mlp.hook_in");
    if (found.mentions("/transcoder")) out = block_hook(*layer, "hook_mlp_out");
  }
  if (out.empty()) out = in;
  set_sites(origin, in, w.W_enc_FD.size(-1), out, w.W_dec_FD.size(-1));
}

/// A crosscoder: features of each site that read it alone and write them all. One dictionary over the sites side by side.
void read_sites(Found& found, Parts& parts) {
  auto& w = parts.weights;
  std::vector<torch::Tensor> enc, b_enc, threshold, dec, b_dec, skip;
  const auto take = [&](Tensors& tensors) {
    enc.push_back(tensors.take("w_enc").t());
    b_enc.push_back(tensors.take("b_enc"));
    threshold.push_back(tensors.take("threshold"));
    dec.push_back(tensors.take("w_dec").flatten(1));
    b_dec.push_back(tensors.take("b_dec"));
    if (tensors.has("affine_skip_connection")) skip.push_back(tensors.take("affine_skip_connection").t());
  };
  const auto sites = found.tensors.shape("w_dec").at(1);
  check<IoError>(sites >= 1 && sites <= 1024, "w_dec must write 1 to 1,024 sites, got ", sites);
  take(found.tensors);
  for (int64_t i = 1; i < sites; ++i) {
    Tensors next(found.tensors.path().parent_path() / concat("params_layer_", i, ".safetensors"));
    take(next);
    next.check_all_taken();
  }
  check<IoError>(skip.empty() || static_cast<int64_t>(skip.size()) == sites,
                 "all files must have a skip, or none");
  w.W_enc_FD = at::block_diag(enc);
  w.b_enc_F = at::cat(b_enc);
  w.threshold_F = at::cat(threshold);
  w.W_dec_FD = at::cat(dec);
  w.b_dec_D = at::cat(b_dec);
  if (!skip.empty()) w.W_skip_DD = at::block_diag(skip);
}

/// The layers in crosscoder/layer_7_13_17_22_width_262k_l0_medium: residual streams after them.
void set_crosscoder_origin(const Found& found, Parts& parts, int64_t sites) {
  const auto text = found.tensors.path().parent_path().filename().string();
  const auto width = parts.weights.W_enc_FD.size(-1) / sites;
  std::vector<DictionarySite> layers;
  for (auto at = text.find("layer_");
       at != std::string::npos && static_cast<int64_t>(layers.size()) < sites;) {
    at = text.find('_', at) + 1;
    size_t end = at;
    while (end < text.size() && text[end] >= '0' && text[end] <= '9' && end - at < 6) ++end;
    if (end == at) break;
    layers.push_back({block_hook(std::stoll(text.substr(at, end - at)), "hook_resid_post"), width});
    at = end;
    if (at >= text.size() || text[at] != '_') break;
  }
  if (static_cast<int64_t>(layers.size()) == sites) parts.origin.inputs = parts.origin.outputs = layers;
}

Parts read_gemma_scope_2(Found& found) {
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  const auto json = found.json("config.json");
  const auto architecture = text_of(json, "architecture");
  check<ConfigError>(architecture.empty() || architecture == "jump_relu",
                     "the architecture must be jump_relu, got ", excerpt(architecture));
  config.architecture = Architecture::jumprelu;
  config.subtract_b_dec = false;
  if (const auto shape = found.tensors.shape("w_dec"); shape.size() == 3) {
    check<ConfigError>(!found.mentions("/clt/"),
                       "is a cross-layer transcoder: load_cross_layer_transcoder reads it");
    read_sites(found, parts);
    set_origin(found, json, parts);
    origin.inputs.clear();
    origin.outputs.clear();
    set_crosscoder_origin(found, parts, shape[1]);
    return parts;
  }
  w.W_enc_FD = found.tensors.take("w_enc").t();
  w.W_dec_FD = found.tensors.take("w_dec");
  w.b_enc_F = found.tensors.take("b_enc");
  w.b_dec_D = found.tensors.take("b_dec");
  w.threshold_F = found.tensors.take("threshold");
  if (const auto skip = found.tensors.take_if_there("affine_skip_connection"); skip.defined())
    w.W_skip_DD = skip.t();
  set_origin(found, json, parts);
  return parts;
}

}  // namespace

const Format kGemmaScope2 = {"gemma_scope_2",
                             "config.json and params.safetensors, or params_layer_<n>.safetensors",
                             is_gemma_scope_2, read_gemma_scope_2};

}  // namespace introspect::sae::formats

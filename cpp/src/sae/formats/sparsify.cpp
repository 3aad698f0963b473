// sparsify (EleutherAI, formerly sae): <hook point>/cfg.json and sae.safetensors; encoder.weight [d_sae, d_in], W_dec
// [d_sae, d_out], W_skip [d_out, d_in]. Source: EleutherAI/sparsify@9d3b136 sparse_coder.py.
#include "introspect/core/check.h"

#include "core/excerpt.h"
#include "core/json.h"
#include "introspect/io/file.h"
#include "io/json_file.h"
#include "sae/formats/format.h"

namespace introspect::sae::formats {
namespace {

bool is_sparsify(const Found& found) {
  return found.has_file("cfg.json") && found.tensors.path().filename() == "sae.safetensors";
}

/// The config.json of the run, in the folder above.
nlohmann::json run_config(const Found& found) {
  const auto file = std::filesystem::absolute(found.folder).parent_path() / "config.json";
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(file, ignored)) return nlohmann::json::object();
  return io::parse_json_object(io::read_text(file, size_t{1} << 20), file);
}

Parts read_sparsify(Found& found) {
  const auto json = found.json("cfg.json");
  const JsonField<IoError> cfg(json, "cfg.json: ");
  const auto flag = [&](const char* key) {
    return cfg.has(key) && !cfg.at(key).is_null() && cfg.at(key).boolean();
  };
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  const auto activation = cfg.has("activation") ? cfg.at("activation").text() : "topk";
  check<ConfigError>(activation == "topk" || activation == "groupmax",
                     "activation must be topk or groupmax, got ", excerpt(activation));
  config.architecture = activation == "groupmax" ? Architecture::groupmax
                        : flag("signed")         ? Architecture::abstopk
                                                 : Architecture::topk;
  config.k = static_cast<double>(cfg.at("k").integer());
  const bool transcodes = flag("transcode");
  config.subtract_b_dec = !transcodes;
  auto& t = found.tensors;
  w.W_enc_FD = t.take("encoder.weight");
  w.b_enc_F = t.take_if_there("encoder.bias");
  w.W_dec_FD = t.has("W_dec") ? t.take("W_dec") : t.take("decoder.weight").t();
  w.b_dec_D = t.take_if_there("b_dec");
  w.W_skip_DD = t.take_if_there("W_skip");
  const auto d_in = cfg.at("d_in").integer();
  check<IoError>(w.W_enc_FD.dim() == 2 && w.W_enc_FD.size(1) == d_in, "cfg.json says d_in ", d_in,
                 ", encoder.weight is ", w.W_enc_FD.sizes());
  const auto run = run_config(found);
  const JsonField<IoError> about(run, "config.json: ");
  if (about.has("model")) origin.model_name = about.at("model").text();
  if (about.has("ctx_len")) origin.context_size = about.at("ctx_len").integer();
  origin.notes = json.dump();
  const auto out = hook_of_module(std::filesystem::absolute(found.folder).filename().string());
  const auto in = transcodes
                      ? hook_of_module(std::filesystem::absolute(found.folder).filename().string() + ".input")
                      : out;
  set_sites(origin, in, d_in, out, w.W_dec_FD.size(-1));
  return parts;
}

}  // namespace

const Format kSparsify = {"sparsify", "cfg.json and sae.safetensors", is_sparsify, read_sparsify};

}  // namespace introspect::sae::formats

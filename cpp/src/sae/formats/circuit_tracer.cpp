// circuit-tracer: layer_12.safetensors, one transcoder a layer, and the config.yaml of all; W_enc [d_sae, d_in], W_dec
// [d_sae, d_out], W_skip [d_out, d_in], activation_function.threshold. A threshold without a relu; features are zero at BOS.
// Source: safety-research/circuit-tracer@4bb8c0e transcoder/single_layer_transcoder.py.
#include <algorithm>
#include <charconv>
#include <set>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "introspect/io/safetensors.h"

#include "core/excerpt.h"
#include "io/utf8.h"
#include "sae/formats/format.h"

namespace introspect::sae::formats {
namespace {

constexpr auto kConfig = "config.yaml", kThreshold = "activation_function.threshold";

std::string trimmed(std::string text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!text.empty() && is_space(text.back())) text.pop_back();
  size_t begin = 0;
  while (begin < text.size() && is_space(text[begin])) ++begin;
  text.erase(0, begin);
  const bool is_quoted = text.size() >= 2 && (text[0] == '"' || text[0] == '\'') && text.back() == text[0];
  return is_quoted ? text.substr(1, text.size() - 2) : text;
}

/// Everything before a comment.
std::string content(const std::string& line) {
  const auto at = line.starts_with('#') ? 0 : line.find(" #");
  return line.substr(0, at);
}

bool is_circuit_tracer(const Found& found) {
  const auto& t = found.tensors;
  if (t.path().extension() != ".safetensors" || !t.has("W_enc") || !t.has("W_dec") || !t.has("b_enc"))
    return false;
  return found.has_file(kConfig) || t.has(kThreshold) || t.path().filename().string().starts_with("layer_");
}

void set_activation(Found& found, const TranscoderSet& set, Parts& parts) {
  auto& t = found.tensors;
  auto& config = parts.config;
  auto k = t.take_integer("k");
  if (!k) k = set.k ? set.k : found.options.k;
  if (t.has(kThreshold)) {
    config.architecture = Architecture::jumprelu;
    parts.weights.threshold_F = t.take(kThreshold).flatten();
    parts.has_relu = false;
  } else if (set.activation == "topk" || (set.activation.empty() && k)) {
    check<ConfigError>(k.has_value(), "config.yaml says topk, and nothing says k: give k");
    config.architecture = Architecture::topk;
    config.k = static_cast<double>(*k);
  } else {
    check<ConfigError>(set.activation.empty() || set.activation == "relu",
                       "activation must be relu, topk or, with thresholds, jump_relu, got ",
                       excerpt(set.activation));
  }
}

Parts read_circuit_tracer(Found& found) {
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  TranscoderSet set;
  if (found.has_file(kConfig)) set = read_transcoder_set(found.folder / kConfig);
  auto& t = found.tensors;
  w.W_enc_FD = t.take("W_enc");
  w.W_dec_FD = t.take("W_dec");
  w.b_enc_F = t.take("b_enc");
  w.b_dec_D = t.take("b_dec");
  w.W_skip_DD = t.take_if_there("W_skip");
  config.subtract_b_dec = false;
  set_activation(found, set, parts);
  origin.model_name = set.model_name;
  origin.masks_bos = true;
  const auto layer = found.number_after("/layer_");
  if (layer && !set.input_hook.empty())
    set_sites(origin, block_hook(*layer, set.input_hook), w.W_enc_FD.size(-1),
              block_hook(*layer, set.output_hook), w.W_dec_FD.size(-1));
  return parts;
}

/// The layer and the point of "blocks.3.hook_mlp_out".
std::pair<int64_t, std::string> split_hook(const std::vector<DictionarySite>& sites, const char* which) {
  check<ConfigError>(sites.size() == 1,
                     "save_dictionary: circuit-tracer's format needs one hook point of its ", which);
  const auto& name = sites[0].hook_name;
  int64_t layer = 0;
  const auto begin = std::min(size_t{7}, name.size());
  const auto [end, error] = std::from_chars(name.data() + begin, name.data() + name.size(), layer);
  check<ConfigError>(name.starts_with("blocks.") && error == std::errc() && *end == '.',
                     "save_dictionary: circuit-tracer's format needs a hook point of a block, got ",
                     excerpt(name));
  return {layer, std::string(end + 1)};
}

std::string to_yaml(const TranscoderSet& set) {
  std::string out = concat("model_name: \"", set.model_name,
                           "\"\nmodel_kind: transcoder_set\nfeature_input_hook: \"", set.input_hook,
                           "\"\nfeature_output_hook: \"", set.output_hook, "\"\nscan: \"", set.scan, "\"\n");
  if (!set.activation.empty()) out += "activation: " + set.activation + "\n";
  if (set.k) out += concat("k: ", *set.k, "\n");
  out += "transcoders:\n";
  for (const auto& file : set.files) out += "- \"" + file + "\"\n";
  return out;
}

/// The files of the set, by layer. The format has one for each from 0 on; a set that grows has those that are there.
std::vector<std::string> files_of(const std::filesystem::path& folder) {
  std::vector<std::string> out;
  for (const auto layer : dictionary_layers(folder)) out.push_back(concat("layer_", layer, ".safetensors"));
  return out;
}

}  // namespace

TranscoderSet read_transcoder_set(const std::filesystem::path& config) {
  const auto text = io::read_text(config, size_t{1} << 20);
  const auto who = config.string() + ": ";
  check<IoError>(io::is_utf8(text), who, "is no text in UTF-8");
  TranscoderSet out;
  bool in_list = false;
  for (size_t at = 0; at < text.size();) {
    const auto end = std::min(text.find('\n', at), text.size());
    const auto line = content(text.substr(at, end - at));
    at = end + 1;
    const auto plain = trimmed(line);
    if (plain.empty() || plain == "---") continue;
    if (in_list && plain.starts_with("- ")) {
      out.files.push_back(trimmed(plain.substr(2)));
      continue;
    }
    if (line[0] == ' ' || line[0] == '-') continue;  // of a nested value that we do not use
    const auto colon = plain.find(':');
    check<IoError>(colon != std::string::npos, who, "a line must be a key and its value, got ",
                   excerpt(plain));
    const auto key = plain.substr(0, colon);
    auto value = trimmed(plain.substr(colon + 1));
    if (value == "null" || value == "~") value.clear();
    in_list = key == "transcoders" && value.empty();
    for (const auto& [name, to] : {std::pair{"model_name", &out.model_name},
                                   {"model_kind", &out.model_kind},
                                   {"feature_input_hook", &out.input_hook},
                                   {"feature_output_hook", &out.output_hook},
                                   {"scan", &out.scan},
                                   {"activation", &out.activation}})
      if (key == name) *to = value;
    if (key == "k" && !value.empty()) {
      int64_t k = 0;
      const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), k);
      check<IoError>(error == std::errc() && stop == value.data() + value.size(), who,
                     "k must be a whole number, got ", excerpt(value));
      out.k = k;
    }
  }
  static const std::set<std::string> kKinds = {"", "transcoder_set", "cross_layer_transcoder"};
  check<IoError>(kKinds.contains(out.model_kind), who,
                 "model_kind must be transcoder_set or cross_layer_transcoder, got ",
                 excerpt(out.model_kind));
  return out;
}

void save_as_circuit_tracer(const Dictionary& dictionary, const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  const auto [layer, input] = split_hook(dictionary.origin().inputs, "input");
  const auto [layer_out, output] = split_hook(dictionary.origin().outputs, "output");
  check<ConfigError>(layer == layer_out,
                     "save_dictionary: a transcoder of circuit-tracer's format stays in its layer");
  auto d = dictionary;
  if (d.config().input_norm == InputNorm::scale) d = d.fold_input_scale();
  if (d.config().rank_by_decoder_norm) d = d.fold_decoder_norm();
  const auto& config = d.config();
  const auto& w = d.weights();
  const bool holds = config.architecture == Architecture::standard ||
                     config.architecture == Architecture::jumprelu ||
                     (config.architecture == Architecture::topk && config.relu);
  check<ConfigError>(
      holds && config.input_norm == InputNorm::none,
      "save_dictionary: circuit-tracer's format holds relu, jumprelu and topk without an input norm, got ",
      to_string(config.architecture), config.input_norm == InputNorm::none ? "" : " with one");
  TranscoderSet set{dictionary.origin().model_name,
                    "transcoder_set",
                    input,
                    output,
                    dictionary.origin().release,
                    "",
                    {},
                    {}};
  if (config.architecture == Architecture::topk) {
    set.activation = "topk";
    set.k = static_cast<int64_t>(config.k);
  } else if (config.architecture == Architecture::standard) {
    set.activation = "relu";
  }
  std::error_code ignored;
  if (std::filesystem::exists(folder / kConfig, ignored)) {
    const auto there = read_transcoder_set(folder / kConfig);
    check<ConfigError>(
        there.model_name == set.model_name && there.input_hook == input && there.output_hook == output &&
            there.activation == set.activation && there.k == set.k,
        "save_dictionary: ", folder.string(), " holds transcoders of ", excerpt(there.model_name), " from ",
        there.input_hook, " to ", there.output_hook, ": this one is of another kind");
    set.scan = there.scan;
  }
  auto b_enc_F = w.b_enc_F.defined() ? w.b_enc_F : at::zeros({d.d_sae()}, w.W_dec_FD.options());
  const auto b_dec_D = w.b_dec_D.defined() ? w.b_dec_D : at::zeros({d.d_out()}, w.W_dec_FD.options());
  if (config.subtract_b_dec) b_enc_F = b_enc_F - at::mv(w.W_enc_FD, b_dec_D);
  std::vector<std::pair<std::string, torch::Tensor>> tensors{
      {"W_enc", w.W_enc_FD}, {"W_dec", w.W_dec_FD}, {"b_enc", b_enc_F}, {"b_dec", b_dec_D}};
  if (w.W_skip_DD.defined()) tensors.emplace_back("W_skip", w.W_skip_DD);
  if (w.threshold_F.defined()) tensors.emplace_back(kThreshold, w.threshold_F);
  if (set.k) tensors.emplace_back("k", at::scalar_tensor(*set.k, torch::kInt64));
  io::save_safetensors(folder / concat("layer_", layer, ".safetensors"), tensors);
  set.files = files_of(folder);
  io::write_atomically(folder / kConfig, to_yaml(set));
}

const Format kCircuitTracer = {"circuit_tracer", "layer_<n>.safetensors and config.yaml", is_circuit_tracer,
                               read_circuit_tracer};

}  // namespace introspect::sae::formats

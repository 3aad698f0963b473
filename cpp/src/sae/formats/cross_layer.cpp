// Cross-layer transcoders in folders. circuit-tracer's: W_enc_<l>.safetensors with W_enc_<l> [F, D], b_enc_<l>, b_dec_<l> and, of
// jumprelu, threshold_<l>; W_dec_<l>.safetensors with W_dec_<l> [F, L - l, D]. Gemma Scope 2's: params_layer_<l>.safetensors with
// w_enc [D, F], w_dec [F, L, D]. Source: safety-research/circuit-tracer@4bb8c0e transcoder/cross_layer_transcoder.py.
#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "introspect/io/safetensors.h"
#include "introspect/sae/files.h"

#include "core/excerpt.h"
#include "sae/formats/format.h"

namespace introspect::sae {
namespace {

namespace fs = std::filesystem;
using formats::Tensors;

constexpr int64_t kMostLayers = 1024;

struct Layer {
  DictionaryConfig config;
  DictionaryWeights weights;
  torch::Tensor b_dec_D, W_skip_DD;
};

int64_t count_files(const fs::path& folder, const std::string& begin) {
  std::error_code ignored;
  int64_t n = 0;
  while (n < kMostLayers && fs::is_regular_file(folder / concat(begin, n, ".safetensors"), ignored)) ++n;
  return n;
}

/// Decoders [F, sites, D] as one of sites side by side.
torch::Tensor side_by_side(const torch::Tensor& W_dec, int64_t sites, const fs::path& file) {
  check<IoError>(W_dec.dim() == 3 && W_dec.size(1) == sites, file.string(), ": its decoder must be [d_sae, ",
                 sites, ", d], got ", W_dec.sizes());
  return W_dec.flatten(1);
}

void set_threshold(Layer& layer, const torch::Tensor& threshold) {
  if (!threshold.defined()) return;
  layer.config.architecture = Architecture::jumprelu;
  layer.weights.threshold_F = threshold.flatten();
}

Layer read_circuit_tracer_layer(const fs::path& folder, int64_t l, int64_t n_layers) {
  Tensors encoder(folder / concat("W_enc_", l, ".safetensors")),
      decoder(folder / concat("W_dec_", l, ".safetensors"));
  Layer out;
  out.weights.W_enc_FD = encoder.take(concat("W_enc_", l));
  out.weights.b_enc_F = encoder.take(concat("b_enc_", l));
  out.b_dec_D = encoder.take(concat("b_dec_", l));
  set_threshold(out, encoder.take_if_there(concat("threshold_", l)));
  out.weights.W_dec_FD = side_by_side(decoder.take(concat("W_dec_", l)), n_layers - l, decoder.path());
  encoder.check_all_taken();
  decoder.check_all_taken();
  return out;
}

Layer read_gemma_scope_layer(const fs::path& folder, int64_t l, int64_t n_layers) {
  Tensors t(folder / concat("params_layer_", l, ".safetensors"));
  Layer out;
  out.weights.W_enc_FD = t.take("w_enc").t();
  out.weights.b_enc_F = t.take("b_enc");
  out.b_dec_D = t.take("b_dec");
  set_threshold(out, t.take("threshold").clamp_min(0));
  const auto W_dec = t.take("w_dec");
  check<IoError>(W_dec.dim() == 3 && W_dec.size(1) == n_layers, t.path().string(), ": w_dec must be [d_sae, ",
                 n_layers, ", d], got ", W_dec.sizes());
  out.weights.W_dec_FD = W_dec.narrow(1, l, n_layers - l).flatten(1);
  if (const auto skip = t.take_if_there("affine_skip_connection"); skip.defined()) out.W_skip_DD = skip.t();
  t.check_all_taken();
  return out;
}

DictionaryOrigin origin_of(const formats::TranscoderSet& set, int64_t n_layers, int64_t d_in, int64_t d_out,
                           const DictionaryOrigin& known) {
  auto out = known;
  if (!set.model_name.empty()) out.model_name = set.model_name;
  out.masks_bos |= !set.model_kind.empty();
  if (set.input_hook.empty() || set.output_hook.empty()) return out;
  out.inputs.clear();
  out.outputs.clear();
  for (int64_t l = 0; l < n_layers; ++l) {
    out.inputs.push_back({formats::block_hook(l, set.input_hook), d_in});
    out.outputs.push_back({formats::block_hook(l, set.output_hook), d_out});
  }
  return out;
}

CrossLayerTranscoder read(const fs::path& folder, const LoadOptions& options) {
  const at::NoGradGuard no_grad;
  const bool is_gemma_scope = count_files(folder, "W_enc_") == 0;
  const auto n_layers = count_files(folder, is_gemma_scope ? "params_layer_" : "W_enc_");
  check<ConfigError>(n_layers > 0, "load_cross_layer_transcoder: ", folder.string(),
                     " holds neither W_enc_0.safetensors nor params_layer_0.safetensors");
  formats::TranscoderSet set;
  std::error_code ignored;
  if (fs::is_regular_file(folder / "config.yaml", ignored))
    set = formats::read_transcoder_set(folder / "config.yaml");
  if (is_gemma_scope) {
    set.input_hook = "mlp.hook_in";
    set.output_hook = "hook_mlp_out";
  }
  std::vector<Dictionary> layers;
  std::vector<torch::Tensor> b_dec, skip;
  for (int64_t l = 0; l < n_layers; ++l) {
    auto layer = is_gemma_scope ? read_gemma_scope_layer(folder, l, n_layers)
                                : read_circuit_tracer_layer(folder, l, n_layers);
    const auto dtype = options.dtype.value_or(layer.weights.W_dec_FD.scalar_type());
    const auto placed = [&](torch::Tensor& tensor) {
      if (tensor.defined()) tensor = tensor.to(options.device, dtype).contiguous();
    };
    auto& w = layer.weights;
    for (auto* const tensor :
         {&w.W_enc_FD, &w.b_enc_F, &w.W_dec_FD, &w.threshold_F, &layer.b_dec_D, &layer.W_skip_DD})
      placed(*tensor);
    layer.config.subtract_b_dec = false;
    layers.emplace_back(layer.config, std::move(w));
    b_dec.push_back(layer.b_dec_D);
    if (layer.W_skip_DD.defined()) skip.push_back(layer.W_skip_DD);
  }
  check<IoError>(skip.empty() || static_cast<int64_t>(skip.size()) == n_layers,
                 "all layers must have a skip, or none");
  const auto d_in = layers[0].d_in(), d_out = b_dec[0].size(0);
  return {std::move(layers), at::stack(b_dec), skip.empty() ? torch::Tensor{} : at::stack(skip),
          origin_of(set, n_layers, d_in, d_out, options.origin)};
}

/// What follows "blocks.0." in the first site's name.
std::string point_of(const std::vector<DictionarySite>& sites) {
  const std::string begin = "blocks.0.";
  check<ConfigError>(
      !sites.empty() && sites[0].hook_name.starts_with(begin),
      "save_cross_layer_transcoder: the hook points of all layers must be known, from block 0 on");
  return sites[0].hook_name.substr(begin.size());
}

}  // namespace

CrossLayerTranscoder load_cross_layer_transcoder(const fs::path& folder, const LoadOptions& options) {
  const auto who = "load_cross_layer_transcoder: " + folder.string() + ": ";
  try {
    return read(folder, options);
  } catch (const IoError& error) {
    throw IoError(who + error.what());
  } catch (const ShapeError& error) {  // tensors that no transcoder can have: the file's fault
    throw IoError(who + error.what());
  } catch (const std::logic_error& error) {
    throw IoError(who + error.what());
  } catch (const c10::Error& error) {
    throw IoError(who + error.what_without_backtrace());
  }
}

void save_cross_layer_transcoder(const CrossLayerTranscoder& transcoder, const fs::path& folder) {
  const at::NoGradGuard no_grad;
  const auto input = point_of(transcoder.origin().inputs), output = point_of(transcoder.origin().outputs);
  check<ConfigError>(!transcoder.W_skip().defined(), "save_cross_layer_transcoder: the format has no skip");
  for (const auto& layer : transcoder.layers()) {
    const auto& config = layer.config();
    check<ConfigError>(
        (config.architecture == Architecture::standard || config.architecture == Architecture::jumprelu) &&
            !config.rank_by_decoder_norm,
        "save_cross_layer_transcoder: the format holds relu and jumprelu, got ",
        to_string(config.architecture), config.rank_by_decoder_norm ? " ranked by decoder norm" : "");
  }
  std::error_code problem;
  fs::create_directories(folder, problem);
  check<IoError>(!problem, "save_cross_layer_transcoder: ", folder.string(),
                 " cannot be made: ", problem.message());
  const auto L = transcoder.n_layers();
  for (int64_t l = 0; l < L; ++l) {
    const auto& w = transcoder.layers()[static_cast<size_t>(l)].weights();
    const auto options = w.W_dec_FD.options();
    std::vector<std::pair<std::string, torch::Tensor>> encoder{
        {concat("W_enc_", l), w.W_enc_FD},
        {concat("b_enc_", l), w.b_enc_F.defined() ? w.b_enc_F : at::zeros({w.W_dec_FD.size(0)}, options)},
        {concat("b_dec_", l),
         transcoder.b_dec().defined() ? transcoder.b_dec()[l] : at::zeros({transcoder.d_out()}, options)}};
    if (w.threshold_F.defined()) encoder.emplace_back(concat("threshold_", l), w.threshold_F);
    io::save_safetensors(folder / concat("W_enc_", l, ".safetensors"), encoder);
    io::save_safetensors(folder / concat("W_dec_", l, ".safetensors"),
                         {{concat("W_dec_", l), transcoder.W_dec(l)}});
  }
  const auto text =
      concat("model_name: \"", transcoder.origin().model_name,
             "\"\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: \"", input,
             "\"\nfeature_output_hook: \"", output, "\"\nscan: \"", transcoder.origin().release, "\"\n");
  io::write_atomically(folder / "config.yaml", text);
}

}  // namespace introspect::sae

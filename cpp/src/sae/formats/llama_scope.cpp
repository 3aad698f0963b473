// Llama Scope (2024): hyperparams.json and checkpoints/final.safetensors of fnlp/Llama3_1-8B-Base-LX*; encoder.weight
// [d_sae, d_in], decoder.weight [d_out, d_sae]. Inputs are scaled to a mean norm of sqrt(d), and the threshold is of
// pre-activations before that scale: times the scale in the space where it acts. Source: He et al. 2024, arXiv:2410.20526.
// And Llama Scope R1: config.json and sae_weights.safetensors with log_jumprelu_threshold, in the scaled space.
#include <cmath>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "core/excerpt.h"
#include "core/json.h"
#include "sae/formats/format.h"

namespace introspect::sae::formats {
namespace {

constexpr double kUnit = 0.02;  // a row of length 1 in bfloat16 is within half of that

void take_layers(Found& found, DictionaryWeights& w) {
  w.W_enc_FD = found.tensors.take("encoder.weight");
  w.b_enc_F = found.tensors.take("encoder.bias");
  w.W_dec_FD = found.tensors.take("decoder.weight").t();
  w.b_dec_D = found.tensors.take_if_there("decoder.bias");
}

/// Reads x, and writes y, in the model's own scale.
void fold_scales(DictionaryWeights& w, double in, double out) {
  const auto scaled = [](const torch::Tensor& t, double by) {
    return (t.to(torch::kFloat64) * by).to(t.scalar_type());
  };
  w.W_enc_FD = scaled(w.W_enc_FD, in);
  w.W_dec_FD = scaled(w.W_dec_FD, 1 / out);
  if (w.b_dec_D.defined()) w.b_dec_D = scaled(w.b_dec_D, 1 / out);
}

void set_origin(const nlohmann::json& config, const std::string& model, Parts& parts) {
  const JsonField<IoError> field(config, "its description: ");
  const auto in = field.at("hook_point_in").text();
  const auto out = field.has("hook_point_out") ? field.at("hook_point_out").text() : in;
  set_sites(parts.origin, in, parts.weights.W_enc_FD.size(-1), out, parts.weights.W_dec_FD.size(-1));
  parts.origin.model_name = model;
  parts.origin.context_size = 1024;
  parts.origin.prepend_bos = true;
  parts.origin.notes = config.dump();
}

bool is_llama_scope(const Found& found) {
  return found.tensors.has("encoder.weight") &&
         (found.has_file("hyperparams.json") ||
          found.tensors.path().parent_path().filename() == "checkpoints");
}

Parts read_llama_scope(Found& found) {
  auto config_json = found.json("hyperparams.json");
  check<IoError>(config_json.is_object(), "hyperparams.json must lie in the folder");
  const JsonField<IoError> field(config_json, "hyperparams.json: ");
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  const auto activation = field.has("act_fn") ? field.at("act_fn").text() : "jumprelu";
  check<ConfigError>(activation == "jumprelu", "act_fn must be jumprelu, got ", excerpt(activation));
  config.architecture = Architecture::jumprelu;
  config.subtract_b_dec = false;
  take_layers(found, w);
  const auto norms = w.W_dec_FD.to(torch::kFloat32).norm(2, -1);
  const auto off = (norms - 1).abs().max().item<double>();
  check<ConfigError>(off < kUnit, "decoder rows must have length 1, one is off by ", off);
  const auto average = field.at("dataset_average_activation_norm");
  const auto d = static_cast<double>(field.at("d_model").integer());
  const auto scale_in = std::sqrt(d) / average.at("in").number(),
             scale_out = std::sqrt(d) / average.at("out").number();
  check<IoError>(std::isfinite(scale_in) && scale_in > 0 && std::isfinite(scale_out) && scale_out > 0,
                 "dataset_average_activation_norm must be above 0");
  w.threshold_F = at::scalar_tensor(field.at("jump_relu_threshold").number() * scale_in, torch::kFloat64);
  fold_scales(w, scale_in, scale_out);
  set_origin(config_json, "meta-llama/Llama-3.1-8B", parts);
  return parts;
}

bool is_llama_scope_distill(const Found& found) {
  return found.tensors.has("log_jumprelu_threshold");
}

Parts read_llama_scope_distill(Found& found) {
  const auto config_json = found.json("config.json");
  check<IoError>(config_json.is_object(), "config.json must lie in the folder");
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  config.architecture = Architecture::jumprelu;
  config.subtract_b_dec = false;
  take_layers(found, w);
  w.threshold_F = found.tensors.take("log_jumprelu_threshold").exp();
  const auto scale = found.options.input_scale;
  check<ConfigError>(scale && *scale > 0,
                     "its inputs were scaled to a mean norm of sqrt(d) and the file does not say by how "
                     "much: give input_scale");
  fold_scales(w, *scale, *scale);
  set_origin(config_json, "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", parts);
  return parts;
}

}  // namespace

const Format kLlamaScope = {"llama_scope", "hyperparams.json and checkpoints/final.safetensors",
                            is_llama_scope, read_llama_scope};
const Format kLlamaScopeDistill = {"llama_scope_r1",
                                   "config.json and sae_weights.safetensors with log_jumprelu_threshold",
                                   is_llama_scope_distill, read_llama_scope_distill};

}  // namespace introspect::sae::formats

// OpenAI's autoencoders of GPT-2 small: resid_post_mlp_v5_32k/autoencoders/8.pt; encoder.weight [d_sae, d], decoder.weight
// [d, d_sae]. TopK ones normalise each input, and undo it. Source: openai/sparse_autoencoder@4965b94 model.py, paths.py.
#include <utility>

#include "introspect/core/check.h"

#include "core/excerpt.h"
#include "sae/formats/format.h"

namespace introspect::sae::formats {
namespace {

bool is_openai(const Found& found) {
  return found.tensors.has("latent_bias") && found.tensors.has("pre_bias");
}

std::string text_of(const io::TorchValue* value, const std::string& other) {
  const auto* const text = value ? value->get_if<std::string>() : nullptr;
  return text ? *text : other;
}

void set_topk(Found& found, DictionaryConfig& config) {
  const auto* const state = found.tensors.take_plain("activation_state_dict");
  const auto* const k = state ? state->find("k") : nullptr;
  check<IoError>(k && k->get_if<int64_t>(), "activation_state_dict must say k");
  const auto after = text_of(state->find("postact_fn"), "ReLU");
  check<ConfigError>(after == "ReLU" || after == "Identity", "postact_fn must be ReLU or Identity, got ",
                     excerpt(after));
  config.architecture = Architecture::topk;
  config.k = static_cast<double>(*k->get_if<int64_t>());
  config.relu = after == "ReLU";
  config.input_norm = InputNorm::layer_norm;
  config.layer_norm_eps = 1e-5;
}

Parts read_openai(Found& found) {
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  auto& t = found.tensors;
  const auto activation = text_of(t.take_plain("activation"), "ReLU");
  check<ConfigError>(activation == "ReLU" || activation == "TopK", "activation must be ReLU or TopK, got ",
                     excerpt(activation));
  if (activation == "TopK") set_topk(found, config);
  w.W_enc_FD = t.take("encoder.weight");
  w.b_enc_F = t.take("latent_bias");
  w.W_dec_FD = t.has("decoder.weight") ? t.take("decoder.weight").t() : w.W_enc_FD;  // tied
  w.b_dec_D = t.take("pre_bias");
  for (const char* beside : {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square",
                             "activation", "activation_state_dict", "decoder.linear.weight"})
    t.ignore(beside);
  origin.model_name = "gpt2";
  origin.context_size = 64;
  const auto layer = found.number_after("/autoencoders/");
  for (const auto& [location, point] : {std::pair{"resid_post_mlp", "hook_resid_post"},
                                        {"resid_post_attn", "hook_resid_mid"},
                                        {"resid_delta_mlp", "hook_mlp_out"},
                                        {"resid_delta_attn", "hook_attn_out"},
                                        {"mlp_post_act", "mlp.hook_post"}})
    if (layer && found.mentions(location)) set_site(origin, block_hook(*layer, point), w.W_enc_FD.size(-1));
  return parts;
}

}  // namespace

const Format kOpenai = {"openai", "<layer>.pt with pre_bias and latent_bias", is_openai, read_openai};

}  // namespace introspect::sae::formats

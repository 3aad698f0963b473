// Single .pt files of papers' code: ckkissane's attention autoencoders of GPT-2 (ckkissane/attn-saes-gpt2-small-all-layers, with a
// _cfg.json beside each) and prestoj/tinystories_sae (sae_512_4.pt: 512 features, the 4 largest of p, without a relu).
#include "introspect/core/check.h"

#include "core/json.h"
#include "sae/formats/format.h"

namespace introspect::sae::formats {
namespace {

std::string config_name(const Found& found) {
  return found.tensors.path().stem().string() + "_cfg.json";
}

bool is_ckkissane(const Found& found) {
  return found.tensors.has("W_enc") && found.has_file(config_name(found));
}

Parts read_ckkissane(Found& found) {
  const auto json = found.json(config_name(found));
  const JsonField<IoError> cfg(json, "the _cfg.json: ");
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  w.W_enc_FD = found.tensors.take("W_enc").t();
  w.b_enc_F = found.tensors.take("b_enc");
  w.W_dec_FD = found.tensors.take("W_dec");
  w.b_dec_D = found.tensors.take("b_dec");
  const auto d_in = cfg.at("act_size").integer();
  check<IoError>(w.W_enc_FD.size(-1) == d_in, "the _cfg.json says act_size ", d_in, ", W_enc is of ",
                 w.W_enc_FD.size(-1));
  origin.model_name = "gpt2";
  origin.context_size = 128;
  origin.prepend_bos = true;
  origin.notes = json.dump();
  set_site(origin, cfg.at("act_name").text(), d_in);
  return parts;
}

bool is_tinystories(const Found& found) {
  return found.tensors.has("encoder_weights") && found.tensors.has("decoder_weights");
}

Parts read_tinystories(Found& found) {
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  w.W_enc_FD = found.tensors.take("encoder_weights").t();
  w.b_enc_F = found.tensors.take("encoder_bias");
  w.W_dec_FD = found.tensors.take("decoder_weights");
  w.b_dec_D = found.tensors.take("pre_bias");
  config.architecture = Architecture::topk;
  config.relu = false;
  auto k = found.options.k;
  if (!k)
    if (const auto width = found.number_after("sae_")) k = found.number_after(concat("sae_", *width, "_"));
  check<ConfigError>(k.has_value(),
                     "k stands in the file's name (sae_512_4.pt), and not in this one's: give k");
  config.k = static_cast<double>(*k);
  return parts;
}

}  // namespace

const Format kCkkissane = {"ckkissane", "a .pt with W_enc and a _cfg.json of its name", is_ckkissane,
                           read_ckkissane};
const Format kTinystories = {"tinystories", "sae_<width>_<k>.pt with encoder_weights", is_tinystories,
                             read_tinystories};

}  // namespace introspect::sae::formats

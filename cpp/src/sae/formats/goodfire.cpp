// Goodfire's: Llama-3.1-8B-Instruct-SAE-l19.pth; encoder_linear.weight [d_sae, d], decoder_linear.weight [d, d_sae], relu, no
// b_dec on the input.
#include "introspect/core/check.h"

#include "sae/formats/format.h"

namespace introspect::sae::formats {
namespace {

bool is_goodfire(const Found& found) {
  return found.tensors.has("encoder_linear.weight");
}

Parts read_goodfire(Found& found) {
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  config.subtract_b_dec = false;
  w.W_enc_FD = found.tensors.take("encoder_linear.weight");
  w.b_enc_F = found.tensors.take("encoder_linear.bias");
  w.W_dec_FD = found.tensors.take("decoder_linear.weight").t();
  w.b_dec_D = found.tensors.take("decoder_linear.bias");
  const auto name = found.tensors.path().stem().string();
  const auto end = name.find("-SAE-l");
  if (end == std::string::npos) return parts;
  origin.model_name = "meta-llama/" + name.substr(0, end);
  if (const auto layer = found.number_after("-SAE-l"))
    set_site(origin, block_hook(*layer, "hook_resid_post"), w.W_enc_FD.size(-1));
  return parts;
}

}  // namespace

const Format kGoodfire = {"goodfire", "a .pth with encoder_linear and decoder_linear", is_goodfire,
                          read_goodfire};

}  // namespace introspect::sae::formats

// Gemma Scope (2024): layer_20/width_16k/average_l0_71/params.npz of google/gemma-scope-2b-pt-res and its siblings.
// W_enc [d_in, d_sae], W_dec [d_sae, d_out], jumprelu, no b_dec on the input. Source: Lieberum et al. 2024, arXiv:2408.05147.
#include <cmath>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "sae/formats/format.h"

namespace introspect::sae::formats {
namespace {

bool is_gemma_scope(const Found& found) {
  const auto end = found.tensors.path().extension();
  return end == ".npz" &&
         (found.tensors.has("threshold") && (found.tensors.has("W_enc") || found.tensors.has("w_enc")));
}

torch::Tensor weight(Found& found, const std::string& end) {
  return found.tensors.take(found.tensors.has("w" + end) ? "w" + end : "W" + end);
}

/// The repository's name in the path says the model and the point: gemma-scope-9b-it-res.
void set_origin(const Found& found, Parts& parts, int64_t d_in, int64_t d_out) {
  auto& origin = parts.origin;
  for (const char* size : {"2b-it", "9b-it", "27b-it", "2b", "9b", "27b"})
    if (origin.model_name.empty() && found.mentions(std::string("gemma-scope-") + size))
      origin.model_name = std::string("google/gemma-2-") + size;
  origin.context_size = 1024;
  origin.prepend_bos = true;
  const auto layer = found.number_after("layer_");
  if (!layer) return;
  if (found.mentions("-transcoders"))
    set_sites(origin, block_hook(*layer, "ln2.hook_normalized"), d_in, block_hook(*layer, "hook_mlp_out"),
              d_out);
  else if (found.mentions("-res"))
    set_site(origin, block_hook(*layer, "hook_resid_post"), d_in);
  else if (found.mentions("-mlp"))
    set_site(origin, block_hook(*layer, "hook_mlp_out"), d_in);
  else if (found.mentions("-att"))
    set_site(origin, block_hook(*layer, "attn.hook_z"), d_in);
}

Parts read_gemma_scope(Found& found) {
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  config.architecture = Architecture::jumprelu;
  config.subtract_b_dec = false;
  w.W_enc_FD = weight(found, "_enc").t();
  w.W_dec_FD = weight(found, "_dec");
  w.b_enc_F = found.tensors.take("b_enc");
  w.b_dec_D = found.tensors.take("b_dec");
  w.threshold_F = found.tensors.take("threshold");
  const auto d_in = w.W_enc_FD.size(-1);
  set_origin(found, parts, d_in, w.W_dec_FD.size(-1));
  if (found.mentions("/embedding/")) {
    // Trained on embeddings before Gemma multiplies them by sqrt(d): hook_embed stands after.
    const auto root = std::sqrt(static_cast<double>(d_in));
    w.W_enc_FD = w.W_enc_FD / root;
    w.W_dec_FD = w.W_dec_FD * root;
    w.b_dec_D = w.b_dec_D * root;
    set_site(origin, "hook_embed", d_in);
  }
  return parts;
}

}  // namespace

const Format kGemmaScope = {"gemma_scope", "params.npz", is_gemma_scope, read_gemma_scope};

}  // namespace introspect::sae::formats

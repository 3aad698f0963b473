// Qwen Scope (2026): layer12.sae.pt of Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50; W_enc [d_sae, d], W_dec [d, d_sae]. The k
// largest of p, negative ones among them as they are, no b_dec on the input. Source: arXiv:2605.11887.
#include "introspect/core/check.h"

#include "sae/formats/format.h"

namespace introspect::sae::formats {
namespace {

bool is_qwen_scope(const Found& found) {
  const auto& t = found.tensors;
  if (!t.has("W_enc") || !t.has("W_dec") || !t.has("b_enc") || !t.has("b_dec")) return false;
  const auto W_enc = t.shape("W_enc"), b_enc = t.shape("b_enc");
  return W_enc.size() == 2 && b_enc.size() == 1 && W_enc[0] == b_enc[0];
}

/// Qwen/Qwen3-1.7B-Base of SAE-Res-Qwen3-1.7B-Base-W32K-L0_50.
std::string model_name(const std::string& where) {
  const auto begin = where.find("SAE-Res-");
  const auto end = where.find("-W", begin == std::string::npos ? 0 : begin);
  if (begin == std::string::npos || end == std::string::npos) return {};
  return "Qwen/" + where.substr(begin + 8, end - begin - 8);
}

Parts read_qwen_scope(Found& found) {
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  const auto k = found.options.k ? found.options.k : found.number_after("-L0_");
  check<ConfigError>(k.has_value(),
                     "k stands in no file of this format, only in its repository's name (-L0_50): give k");
  config.architecture = Architecture::topk;
  config.k = static_cast<double>(*k);
  config.relu = false;
  config.subtract_b_dec = false;
  w.W_enc_FD = found.tensors.take("W_enc");
  w.W_dec_FD = found.tensors.take("W_dec").t();
  w.b_enc_F = found.tensors.take("b_enc");
  w.b_dec_D = found.tensors.take("b_dec");
  origin.model_name = model_name(found.where());
  origin.context_size = 1024;
  if (const auto layer = found.number_after("/layer"))
    set_site(origin, block_hook(*layer, "hook_resid_post"), w.W_enc_FD.size(-1));
  return parts;
}

}  // namespace

const Format kQwenScope = {"qwen_scope", "layer<n>.sae.pt", is_qwen_scope, read_qwen_scope};

}  // namespace introspect::sae::formats

#include "sae/formats/format.h"

#include <charconv>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/io/file.h"

#include "io/json_file.h"

namespace introspect::sae::formats {
namespace {

constexpr size_t kMostJson = size_t{16} << 20;

std::optional<int64_t> leading_number(const std::string& text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() ? std::optional(number) : std::nullopt;
}

}  // namespace

std::vector<const Format*> formats() {
  return {&kSaelens,    &kLlamaScopeDistill, &kGemmaScope,         &kGemmaScope2,
          &kLlamaScope, &kSparsify,          &kCircuitTracer,      &kGoodfire,
          &kOpenai,     &kTinystories,       &kDictionaryLearning, &kCkkissane,
          &kQwenScope};
}

nlohmann::json Found::json(const std::string& name) const {
  if (!has_file(name)) return nullptr;
  const auto file = folder / name;
  return io::parse_json_object(io::read_text(file, kMostJson), file);
}

bool Found::has_file(const std::string& name) const {
  std::error_code ignored;
  return std::filesystem::is_regular_file(folder / name, ignored);
}

std::optional<int64_t> Found::number_after(const std::string& prefix) const {
  const auto text = where();
  for (auto at = text.rfind(prefix); at != std::string::npos;
       at = at == 0 ? std::string::npos : text.rfind(prefix, at - 1))
    if (const auto number = leading_number(text.substr(at + prefix.size()))) return number;
  return std::nullopt;
}

void set_site(DictionaryOrigin& origin, const std::string& hook_name, int64_t width) {
  set_sites(origin, hook_name, width, hook_name, width);
}

void set_sites(DictionaryOrigin& origin, const std::string& hook_in, int64_t d_in,
               const std::string& hook_out, int64_t d_out) {
  if (!hook_in.empty()) origin.inputs = {{hook_in, d_in}};
  if (!hook_out.empty()) origin.outputs = {{hook_out, d_out}};
}

std::string block_hook(int64_t layer, const std::string& point) {
  return concat("blocks.", layer, ".", point);
}

std::string hook_of_module(const std::string& module) {
  if (module == "embed_tokens" || module == "transformer.wte" || module == "gpt_neox.embed_in")
    return "hook_embed";
  for (const char* prefix : {"model.layers.", "layers.", "transformer.h.", "gpt_neox.layers.", "h."}) {
    if (!module.starts_with(prefix)) continue;
    const auto rest = module.substr(std::string(prefix).size());
    const auto layer = leading_number(rest);
    if (!layer) continue;
    const auto inside = rest.substr(std::to_string(*layer).size());
    for (const auto& [name, point] : {std::pair<std::string, std::string>{"", "hook_resid_post"},
                                      {".output", "hook_resid_post"},
                                      {".mlp", "hook_mlp_out"},
                                      {".mlp.output", "hook_mlp_out"},
                                      {".post_feedforward_layernorm.output", "hook_mlp_out"},
                                      {".pre_feedforward_layernorm.output", "mlp.hook_in"},
                                      {".mlp.input", "mlp.hook_in"},
                                      {".self_attn", "hook_attn_out"},
                                      {".attn", "hook_attn_out"},
                                      {".attention", "hook_attn_out"},
                                      {".self_attn.o_proj.input", "attn.hook_z"}})
      if (inside == name) return block_hook(*layer, point);
  }
  return {};
}

}  // namespace introspect::sae::formats

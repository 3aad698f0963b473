#include "text/normalizer.h"

#include <algorithm>

#include "introspect/core/check.h"
#include "text/nfc.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

std::string applied(const Nfc&, const std::string& text) {
  return nfc(text);
}
std::string applied(const Prepend& step, const std::string& text) {
  return text.empty() ? text : step.text + text;
}
std::string applied(const Replace& step, const std::string& text) {
  return replace_all(text, step.from, step.to);
}
std::string applied(const SqueezeSpaces&, const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text)
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out += c;
  if (out.ends_with(' ')) out.pop_back();
  return out;
}
std::string applied(const RepeatAtStart& step, const std::string& text) {
  return text.starts_with(step.text) ? step.text + text : text;
}

}  // namespace

bool squeezes_spaces(const Normalizer& normalizer) {
  return std::ranges::any_of(normalizer,
                             [](const auto& step) { return std::holds_alternative<SqueezeSpaces>(step); });
}

std::string normalize(const Normalizer& normalizer, std::string_view text) {
  std::string out(text);
  for (const auto& step : normalizer) {
    out = std::visit([&](const auto& one) { return applied(one, out); }, step);
    check<ConfigError>(out.size() <= std::max(64 * text.size(), size_t{1} << 20),
                       "tokenizer: the normalizer makes a text of ", text.size(), " bytes ", out.size(),
                       " bytes long, more than 64 times as long");
  }
  return out;
}

}  // namespace introspect::text

#include "text/normalizer.h"

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

}  // namespace

std::string normalize(const Normalizer& normalizer, std::string_view text) {
  std::string out(text);
  for (const auto& step : normalizer)
    out = std::visit([&](const auto& one) { return applied(one, out); }, step);
  return out;
}

}  // namespace introspect::text

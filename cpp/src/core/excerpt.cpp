#include "core/excerpt.h"

namespace introspect {

std::string excerpt(std::string_view text) {
  constexpr size_t kMost = 100;
  constexpr std::string_view kDigits = "0123456789abcdef";
  const bool is_whole = text.size() <= kMost;
  if (!is_whole) {
    size_t end = kMost;  // whole UTF-8 characters
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    text = text.substr(0, end);
  }
  std::string out = "'";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7F)
      out += c;
    else if (c == '\n')
      out += "\\n";
    else
      (out += "\\x") += {kDigits[byte / 16], kDigits[byte % 16]};
  }
  return out + (is_whole ? "'" : "...'");
}

}  // namespace introspect

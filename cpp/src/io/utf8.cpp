#include "io/utf8.h"

#include <cstddef>
#include <cstdint>

namespace introspect::io {

bool is_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  for (size_t i = 0; i < text.size();) {
    const uint8_t lead = byte(i++);
    if (lead < 0x80) continue;
    const int n_more = lead >= 0xc2 && lead <= 0xdf   ? 1
                       : lead >= 0xe0 && lead <= 0xef ? 2
                       : lead >= 0xf0 && lead <= 0xf4 ? 3
                                                      : 0;
    if (n_more == 0 || i + n_more > text.size()) return false;
    // The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF.
    const uint8_t lowest = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint8_t highest = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (byte(i) < lowest || byte(i) > highest) return false;
    for (int k = 1; k < n_more; ++k) {
      if ((byte(i + k) & 0xc0) != 0x80) return false;
    }
    i += n_more;
  }
  return true;
}

}  // namespace introspect::io

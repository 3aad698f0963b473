#include "text/byte_alphabet.h"

#include <array>

#include "text/utf8.h"

namespace introspect::text {
namespace {

struct Alphabet {
  std::array<std::string, 256> spelling;
  std::array<int, 0x144> byte_of;  // by code point; -1 outside the alphabet

  Alphabet() {
    byte_of.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t c = visible ? static_cast<char32_t>(byte) : next++;
      append_utf8(spelling[byte], c);
      byte_of[c] = byte;
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

const std::string& spelling_of_byte(unsigned char byte) {
  return alphabet().spelling[byte];
}

std::optional<std::string> spelled_bytes(std::string_view token) {
  const auto& byte_of = alphabet().byte_of;
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t i = 0; i < token.size();) {
    const auto step = utf8_step(token.substr(i));
    if (step.kind != Utf8Step::Kind::character || step.code_point >= byte_of.size() ||
        byte_of[step.code_point] < 0)
      return std::nullopt;
    bytes += static_cast<char>(byte_of[step.code_point]);
    i += step.size;
  }
  return bytes;
}

}  // namespace introspect::text

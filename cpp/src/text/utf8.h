#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace introspect::text {

/// What stands at the front of some bytes that should be UTF-8 (not empty).
struct Utf8Step {
  enum class Kind { character, invalid, incomplete } kind;
  /// The character's bytes, or those of the longest ill-formed part that one U+FFFD replaces (Unicode 16, table 3-8).
  size_t size;
  char32_t code_point;  // of a character
};
Utf8Step utf8_step(std::string_view bytes);

/// Throws ConfigError with the position of the first byte of `text` that is not UTF-8.
void require_utf8(std::string_view text, const char* who);

void append_utf8(std::string& out, char32_t code_point);

/// Unicode's White_Space property.
bool is_white_space(char32_t code_point);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

/// Replaces every `from` by `to`.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

}  // namespace introspect::text

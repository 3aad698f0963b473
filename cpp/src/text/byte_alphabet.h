#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace introspect::text {

/// GPT-2's spelling of bytes as visible characters: printable Latin-1 stands for itself, the other 68 bytes for
/// U+0100 and on ("Ġ" is a space). Source: Radford et al. 2019, byte-level BPE.
const std::string& spelling_of_byte(unsigned char byte);

/// The bytes that `token` spells; nullopt if it holds a character outside the alphabet.
std::optional<std::string> spelled_bytes(std::string_view token);

}  // namespace introspect::text

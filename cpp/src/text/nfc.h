#pragma once

#include <string>
#include <string_view>

namespace introspect::text {

/// Unicode normalization form C of valid UTF-8, by Unicode 9.0 as in the tokenizers library.
///
/// Source: Unicode Standard Annex #15.
std::string nfc(std::string_view text);

}  // namespace introspect::text

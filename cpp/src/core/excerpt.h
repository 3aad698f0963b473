#pragma once

#include <string>
#include <string_view>

namespace introspect {

/// A text of unknown origin for a message: its first 100 bytes in quotation marks, with control characters escaped.
std::string excerpt(std::string_view text);

}  // namespace introspect

#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace introspect {

/// The three names of `known` that are most like a misspelt one, for a message: "lens, text, top_k". By Levenshtein's
/// distance.
std::string nearest_names(std::string_view name, const std::vector<std::string>& known);

}  // namespace introspect

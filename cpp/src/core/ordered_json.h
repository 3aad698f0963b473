#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "core/json.h"

namespace introspect {

/// As parse_json of core/json.h, with the fields of objects in the order of the text. An object may have 10,000 of them:
/// they are looked up one by one.
std::string parse_json(std::string_view text, const JsonRules& rules, nlohmann::ordered_json& parsed);

}  // namespace introspect

#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "introspect/experiments/value.h"

namespace introspect::experiments {

nlohmann::ordered_json json_of(const Value& value);

Value value_of(const nlohmann::ordered_json& json);
inline Value value_of(const nlohmann::json& json) {
  return value_of(nlohmann::ordered_json(json));
}

/// Throws IoError with `who` for text that is not JSON.
nlohmann::ordered_json parse_ordered(const std::string& text, const std::string& who);

/// A token may hold part of a UTF-8 sequence, and JSON text may not: the replacement character stands for it.
std::string dump(const nlohmann::ordered_json& json);

}  // namespace introspect::experiments

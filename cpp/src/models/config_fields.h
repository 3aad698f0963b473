#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include <nlohmann/json.hpp>

#include "core/json.h"
#include "introspect/core/check.h"
#include "introspect/models/config.h"

namespace introspect::models {

using Field = JsonField<ConfigError>;

inline constexpr auto kConfigJson = "config.json: ";

inline Field field_of(const nlohmann::json& object, const std::string& key) {
  return {object.at(key), kConfigJson, concat("'", key, "'")};
}

/// A config.json as the class of its family in transformers 5 reads it: a field that the class does not have is passed
/// over, one that is absent has the class's default.
class Fields {
 public:
  Fields(const nlohmann::json& given, const char* defaults)
      : given_(given), defaults_(nlohmann::json::parse(defaults)) {}

  bool has(const char* key) const { return defaults_.contains(key); }
  const nlohmann::json& otherwise(const char* key) const { return defaults_.at(key); }
  Field at(const char* key) const { return field_of(given_.contains(key) ? given_ : defaults_, key); }
  bool is_null(const char* key) const { return at(key).is_null(); }
  /// Whether the field follows from others where it is absent or null.
  bool follows(const char* key) const { return defaults_.at(key).is_null(); }

  /// A positive number of things.
  int64_t size(const char* key) const {
    const auto field = at(key);
    const auto value = field.integer();
    field.require(value > 0 && value < kLargestSize, "must be from 1 to ", kLargestSize - 1, ", got ", value);
    return value;
  }
  /// One of the names that families have for one setting.
  const char* name(std::initializer_list<const char*> keys) const {
    for (const char* key : keys)
      if (has(key)) return key;
    return *keys.begin();
  }

 private:
  const nlohmann::json& given_;
  nlohmann::json defaults_;
};

}  // namespace introspect::models

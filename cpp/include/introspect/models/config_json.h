#pragma once

#include <string>

#include "introspect/export.h"
#include "introspect/models/config.h"

namespace introspect::models {

/// Every field of a Config by its name, as a JSON object; config_from_json reads it back.
INTROSPECT_EXPORT std::string to_json(const Config& cfg);

/// A Config from such an object; fields that it leaves out have their defaults.
///
/// Throws ConfigError for a field that Config does not have, one of another type, or a config that validate refuses.
INTROSPECT_EXPORT Config config_from_json(const std::string& json);

}  // namespace introspect::models

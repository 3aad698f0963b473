#pragma once

#include <nlohmann/json_fwd.hpp>

#include "models/architecture.h"
#include "models/config_fields.h"

namespace introspect::models {

/// The rotary fields of `cfg` from config.json: rope_parameters of transformers 5, or rope_scaling and the fields beside it
/// of older versions. `given` is what the file holds, `config` what its family's class makes of it.
void read_rotary(const nlohmann::json& given, const Fields& config, const Family& family, Config& cfg);

}  // namespace introspect::models

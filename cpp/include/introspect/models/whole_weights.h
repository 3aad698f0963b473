#pragma once

#include <string_view>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::models {

/// A model's weights with those of its blocks, for whoever walks or edits blocks.
///
/// Model::weights has what lies in memory: no blocks where these stay in the files (LoadOptions::keep_blocks). Throws
/// ConfigError for such a model; the message begins with `who`.
INTROSPECT_EXPORT const Weights& whole_weights(const Model& model, std::string_view who);

}  // namespace introspect::models

#pragma once

#include <filesystem>

#include "introspect/export.h"

namespace introspect::models {

/// Where the command line and Python keep the models they fetch: $INTROSPECT_MODELS, or ~/.cache/introspect/models.
INTROSPECT_EXPORT std::filesystem::path models_folder();

/// The folder or file of a model: a path that is there, or a short name ("qwen2.5-coder-0.5b-instruct") whose file is in
/// models_folder().
///
/// Throws IoError where it is neither, and says how to fetch the model of a short name.
INTROSPECT_EXPORT std::filesystem::path find_model(const std::filesystem::path& path_or_name);

}  // namespace introspect::models

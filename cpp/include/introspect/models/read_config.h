#pragma once

#include <filesystem>

#include "introspect/export.h"
#include "introspect/models/config.h"

namespace introspect::models {

/// The Config of a model's files, without reading a weight: what is needed to plan before a model is loaded.
///
/// tie_word_embeddings is as the files say; a model that holds an unembedding of its own is untied when it is loaded. Throws
/// as Model::load for files that are missing or damaged and architectures that are not supported.
INTROSPECT_EXPORT Config read_config(const std::filesystem::path& path_or_name);

}  // namespace introspect::models

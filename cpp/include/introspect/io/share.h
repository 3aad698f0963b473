#pragma once

#include <filesystem>

#include "introspect/export.h"

namespace introspect::io {

/// The folder of the data that comes with the library (cpp/share: protocols, beginnings of answers, lists of words,
/// names of models): $INTROSPECT_SHARE, or where it was installed or built with the library.
///
/// Throws IoError, naming the places, where it is in none of them.
INTROSPECT_EXPORT std::filesystem::path share_folder();

}  // namespace introspect::io

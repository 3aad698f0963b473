#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

namespace introspect::io {

/// Parses a JSON object from a file. Throws IoError, naming `path`, for text that is not JSON or not an object, that
/// repeats a key (of which a parser would silently keep one) or nests deeper than `max_depth`.
nlohmann::json parse_json_object(std::string_view text, const std::filesystem::path& path,
                                 int max_depth = 64);

}  // namespace introspect::io

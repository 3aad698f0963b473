#pragma once

#include <filesystem>
#include <string_view>

#include "core/json.h"

namespace introspect::io {

/// The rules of Python's json, by which transformers reads and writes the JSON files of a model's folder.
inline constexpr JsonRules kPythonJson = {.numbers_of_python = true,
                                          .may_repeat = [](size_t, std::string_view) { return true; }};

/// What a JSON file holds. Throws IoError, naming the file.
nlohmann::json read_json(const std::filesystem::path& path);

/// The object in a JSON file of a model's folder. Throws IoError, naming the file.
nlohmann::json read_json_object(const std::filesystem::path& path);

/// Likewise, of the file's text.
nlohmann::json parse_json_object(std::string_view text, const std::filesystem::path& path,
                                 const JsonRules& rules = kPythonJson);

}  // namespace introspect::io

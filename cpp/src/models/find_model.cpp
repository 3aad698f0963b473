#include "introspect/models/find_model.h"

#include <cstdlib>
#include <string>

#include "introspect/core/check.h"
#include "introspect/io/share.h"
#include "io/json_file.h"

namespace introspect::models {

std::filesystem::path models_folder() {
  const char* const named = std::getenv("INTROSPECT_MODELS");
  if (named && *named) return named;
  const char* const home = std::getenv("HOME");
  check<IoError>(home && *home, "models_folder: neither INTROSPECT_MODELS nor HOME is set");
  return std::filesystem::path(home) / ".cache" / "introspect" / "models";
}

std::filesystem::path find_model(const std::filesystem::path& path_or_name) {
  if (std::filesystem::exists(path_or_name)) return path_or_name;
  const auto name = path_or_name.string();
  // A path with a folder in it or the ending of a model file is no short name: its reader says what is missing.
  if (path_or_name.has_parent_path() || path_or_name.extension() == ".gguf") return path_or_name;
  const auto known = io::read_json(io::share_folder() / "models.json");
  std::string names;
  for (const auto& [one, entry] : known.items()) names += (names.empty() ? "" : ", ") + one;
  check<IoError>(known.contains(name), "find_model: '", name,
                 "' is no file, no folder and no short name; these are: ", names);
  const auto file = models_folder() / known[name]["file"].get<std::string>();
  check<IoError>(std::filesystem::exists(file), "find_model: '", name, "' is not in ",
                 models_folder().string(), " yet; `introspect pull ", name, "` fetches it");
  return file;
}

}  // namespace introspect::models

#include "introspect/models/read_config.h"

#include <nlohmann/json.hpp>

#include "introspect/io/hf_folder.h"
#include "introspect/models/find_model.h"
#include "io/json_file.h"
#include "models/architecture.h"

namespace introspect::models {

Config read_config(const std::filesystem::path& path_or_name) {
  const auto path = find_model(path_or_name);
  if (!std::filesystem::is_directory(path)) return architecture_of_gguf(*io::GgufFile::open(path)).cfg;
  const auto folder = io::HfFolder::open(path);
  return architecture_of_hf(io::parse_json_object(folder.config_json, path / "config.json"),
                            static_cast<int64_t>(folder.weights->names().size()))
      .cfg;
}

}  // namespace introspect::models

#include "introspect/io/hf_folder.h"

#include <algorithm>

#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "introspect/io/safetensors.h"
#include "io/json_file.h"

namespace introspect::io {
namespace {

namespace fs = std::filesystem;

std::string read_json(const fs::path& path) {
  auto text = read_text(path);
  parse_json_object(text, path);
  return text;
}

bool is_pickle(const fs::directory_entry& entry) {
  const auto extension = entry.path().extension();
  return extension == ".bin" || extension == ".pt" || extension == ".pth";
}

std::shared_ptr<const TensorSource> open_weights(const fs::path& folder) {
  const auto single = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
  std::error_code ignored;  // what cannot be examined is treated as absent, or fails when it is opened
  if (fs::exists(single, ignored)) return SafetensorsFile::open(single);
  if (fs::exists(index, ignored)) return ShardedSafetensors::open(index);
  const bool has_pickle = std::ranges::any_of(fs::directory_iterator(folder, ignored), is_pickle);
  check<ConfigError>(!has_pickle, folder.string(),
                     ": weights must be model.safetensors, found only pickles, which are never loaded "
                     "because they run code; "
                     "convert them to safetensors");
  throw IoError(concat(folder.string(), ": has neither model.safetensors nor model.safetensors.index.json"));
}

}  // namespace

HfFolder HfFolder::open(const fs::path& folder) {
  std::error_code ignored;
  check<IoError>(fs::is_directory(folder, ignored), folder.string(), ": must be a model folder, is ",
                 fs::exists(folder, ignored) ? "a file" : "not there");
  const auto config = folder / "config.json", generation = folder / "generation_config.json";
  check<IoError>(fs::exists(config, ignored), folder.string(), ": has no config.json");
  HfFolder opened{
      .folder = folder, .config_json = read_json(config), .generation_config_json = {}, .weights = {}};
  if (fs::exists(generation, ignored)) opened.generation_config_json = read_json(generation);
  opened.weights = open_weights(folder);
  return opened;
}

}  // namespace introspect::io

#include "introspect/io/hf_folder.h"

#include <algorithm>

#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "introspect/io/safetensors.h"
#include "io/json_file.h"

namespace introspect::io {
namespace {

namespace fs = std::filesystem;

/// The text of a JSON object.
std::string checked_text(const fs::path& path) {
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

[[noreturn]] void throw_adapter(const fs::path& folder, const fs::path& adapter) {
  const auto parsed = read_json_object(adapter);
  const auto base = parsed.find("base_model_name_or_path");
  throw ConfigError(
      concat(folder.string(), ": is a PEFT adapter",
             base != parsed.end() && base->is_string() ? " of " + describe(*base) : "",
             " and no model; merge it into its model (merge_and_unload() and save_pretrained() of peft) "
             "and give that folder"));
}

}  // namespace

HfFolder HfFolder::open(const fs::path& folder) {
  std::error_code ignored;
  check<IoError>(fs::is_directory(folder, ignored), folder.string(), ": must be a model folder, is ",
                 fs::exists(folder, ignored) ? "a file" : "not there");
  const auto config = folder / "config.json", generation = folder / "generation_config.json";
  const auto adapter = folder / "adapter_config.json";
  if (!fs::exists(config, ignored) && fs::exists(adapter, ignored)) throw_adapter(folder, adapter);
  check<IoError>(fs::exists(config, ignored), folder.string(), ": has no config.json");
  HfFolder opened{
      .folder = folder, .config_json = checked_text(config), .generation_config_json = {}, .weights = {}};
  if (fs::exists(generation, ignored)) opened.generation_config_json = checked_text(generation);
  opened.weights = open_weights(folder);
  return opened;
}

}  // namespace introspect::io

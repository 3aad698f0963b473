#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "introspect/export.h"
#include "introspect/io/tensor_source.h"

namespace introspect::io {

/// A model folder as the Hugging Face hub lays it out.
struct INTROSPECT_EXPORT HfFolder {
  std::filesystem::path folder;
  std::string config_json;                            // config.json
  std::optional<std::string> generation_config_json;  // generation_config.json, where there is one
  std::shared_ptr<const TensorSource>
      weights;  // model.safetensors, or the shards of model.safetensors.index.json

  /// Throws IoError if the folder, config.json or the weights are missing or corrupt, and ConfigError if the weights are
  /// there only as pickles: those run code when they are loaded, so they are never opened. Nothing in the folder is executed.
  static HfFolder open(const std::filesystem::path& folder);
};

}  // namespace introspect::io

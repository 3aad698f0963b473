#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "text/pattern.h"

namespace introspect::models {

/// Which modules are meant: by the ends of their names, or by a pattern that is the whole name.
struct ModuleChoice {
  std::vector<std::string> ends;
  std::vector<text::Pattern> patterns;
  bool all = false;

  bool has(const std::string& module) const;
};

/// adapter_config.json of a LoRA adapter, as peft reads it.
struct AdapterConfig {
  ModuleChoice targets, excluded;
  std::vector<int64_t> layers;  // empty: all
  int64_t rank = 0;
  double alpha = 0;
  bool rank_stabilised = false;
  std::vector<std::pair<text::Pattern, int64_t>> ranks;  // of the modules whose names match
  std::vector<std::pair<text::Pattern, double>> alphas;
  std::string base_model;
  std::string text;  // the file

  bool is_target(const std::string& module, int64_t layer) const;
  int64_t rank_of(const std::string& module) const;
  double scaling_of(const std::string& module) const;
};

/// `who` begins every message. Throws ConfigError, naming the field, for what is not supported.
AdapterConfig parse_adapter_config(const nlohmann::json& json, const std::string& who);

/// Throws IoError for a file that is missing or no JSON object, otherwise as parse_adapter_config.
AdapterConfig read_adapter_config(const std::filesystem::path& path);

}  // namespace introspect::models

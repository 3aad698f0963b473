#pragma once

#include <optional>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "introspect/io/gguf.h"
#include "introspect/models/config.h"

namespace introspect::models {

/// Where a checkpoint keeps each tensor; "{}" stands for the layer's number. Empty: the family has no such tensor.
struct WeightMap {
  std::string embed, ln_final, unembed;
  std::string ln1, q, k, v, o, ln2, gate, in, out;  // without ".weight" and ".bias"

  /// llama.cpp's converter interleaves the rows of q and k of llama files, for RoPE on neighbouring pairs.
  bool interleaved_rotary = false;

  /// Factors that divide the rotary frequencies (llama3 scaling in GGUF files); optional in the file.
  std::string rotary_factors;
};

struct Architecture {
  Config cfg;
  WeightMap map;
};

/// From config.json. Throws ConfigError for an architecture or option that is not supported.
Architecture architecture_of_hf(const nlohmann::json& config);

/// From a GGUF file's metadata. Throws ConfigError likewise.
Architecture architecture_of_gguf(const io::GgufFile& file);

}  // namespace introspect::models

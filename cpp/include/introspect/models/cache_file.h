#pragma once

#include <filesystem>
#include <string>

#include <torch/types.h>

#include "introspect/cache/kv_cache.h"
#include "introspect/export.h"

namespace introspect::models {

/// Writes a cache as a .safetensors file, atomically, in its own dtype.
///
/// Tensors keys.{layer} and values.{layer} [B, G, length, K], and mask [B, length] (float32, 1 for a real token) where
/// there is padding; metadata: format, model_hash, and the shape as n_layers, batch, n_key_value_heads, d_head and
/// length. model_hash is Model::hash of the model that made it, or empty.
/// Throws IoError if the file cannot be written.
INTROSPECT_EXPORT void save_cache(const cache::KVCache& cache, const std::filesystem::path& path,
                                  const std::string& model_hash = {});

/// Reads a cache back, in the dtype in which it was saved.
///
/// Throws IoError for a file that is missing, broken or holds no cache, ConfigError if both model_hash and the file name
/// a model and it is not the same.
INTROSPECT_EXPORT cache::KVCache load_cache(const std::filesystem::path& path,
                                            const std::string& model_hash = {},
                                            torch::Device device = torch::kCPU);

}  // namespace introspect::models

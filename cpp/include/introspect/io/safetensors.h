#pragma once

#include <map>
#include <utility>

#include "introspect/io/mapped_tensors.h"

namespace introspect::io {

/// A .safetensors file: a JSON header, then the tensors without gaps.
///
/// Reads F64, F32, F16, BF16 and the F8 dtypes with a mantissa; the others are listed. Every length, count and offset is checked
/// against the file's size when it is opened.
/// Source: https://github.com/huggingface/safetensors (format section of the README).
class INTROSPECT_EXPORT SafetensorsFile : public MappedTensors {
 public:
  /// Throws IoError for a file that is missing, truncated or corrupt.
  static std::shared_ptr<const SafetensorsFile> open(const std::filesystem::path& path);

  /// The header's "__metadata__".
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  friend class ShardedSafetensors;
  SafetensorsFile(std::filesystem::path path, std::vector<StoredTensor> tensors,
                  std::map<std::string, std::string> metadata);

  std::map<std::string, std::string> metadata_;
};

/// The shards that a model.safetensors.index.json names, as one source.
class INTROSPECT_EXPORT ShardedSafetensors : public MappedTensors {
 public:
  /// `index` is the path of the index file; shards lie beside it. The tensors are those that the shards hold, whatever the
  /// index says of them; of two shards with one tensor the last by name holds, as in transformers. Throws IoError if the
  /// index or a shard is missing or corrupt, or if a shard's name leaves the folder.
  static std::shared_ptr<const ShardedSafetensors> open(const std::filesystem::path& index);

 private:
  using MappedTensors::MappedTensors;
};

/// Writes a .safetensors file, atomically (see write_atomically), header padded to a multiple of 8 bytes.
///
/// Tensors of any device and layout, in the dtypes that the format has; they are stored in order of decreasing element
/// size, so that each is aligned, and otherwise as given.
/// Throws std::invalid_argument for an empty, repeated or reserved name ("__metadata__") or a name or metadata that is not
/// UTF-8, ShapeError for a dtype that the format lacks, IoError if the file cannot be written.
INTROSPECT_EXPORT void save_safetensors(const std::filesystem::path& path,
                                        const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                                        const std::map<std::string, std::string>& metadata = {});

}  // namespace introspect::io

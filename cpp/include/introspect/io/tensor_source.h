#pragma once

#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "introspect/export.h"

namespace introspect::io {

/// Named tensors in files, read on demand. Reading is const and safe from several threads.
class INTROSPECT_EXPORT TensorSource {
 public:
  virtual ~TensorSource();

  /// In the order of the file (of the index, for several files).
  virtual std::vector<std::string> names() const = 0;
  virtual bool has(const std::string& name) const = 0;

  /// In torch's order, the last dimension contiguous (GGUF's own order is the reverse). Throws IoError for an absent name.
  virtual std::vector<int64_t> shape(const std::string& name) const = 0;

  /// The stored encoding in the format's own word: "F32", "BF16", "Q4_K", "I64". Throws IoError for an absent name.
  virtual std::string dtype(const std::string& name) const = 0;

  /// Bytes that are stored of it, with those of all that it is read from (the scales of a packed matrix). Throws IoError
  /// for an absent name.
  virtual int64_t stored_bytes(const std::string& name) const = 0;

  /// Throws IoError for an absent name and ConfigError for an encoding that cannot be read as floats (integers, an unknown
  /// quantisation), so that it is known before long work starts.
  virtual void check_readable(const std::string& name) const = 0;

  /// Converts or dequantises a tensor straight into `out`, on all of torch's threads.
  ///
  /// `out` is a contiguous CPU tensor of the stored shape in float64, float32, float16 or bfloat16; rows of a larger
  /// tensor will do, so fused weights need no copy. Quantised values are computed in float32 and rounded once.
  /// Throws as check_readable, and ShapeError if `out` is not such a tensor.
  virtual void read_into(const std::string& name, torch::Tensor& out) const = 0;

  /// A CPU tensor with its own storage, in `dtype`. Throws as read_into.
  torch::Tensor read(const std::string& name, torch::ScalarType dtype) const;

  /// What makes a checkpoint this one: the SHA-256, in hexadecimal, over every tensor's name, shape, encoding and the first
  /// and last 4 KiB of its stored bytes, in the order of the names. Cheap, and equal for a file and its shards.
  virtual std::string fingerprint() const = 0;
};

/// Opens whatever holds tensors at `path`: a .safetensors file, a model.safetensors.index.json, a GGUF file (known by its
/// first bytes, whatever its name), or an HF folder.
///
/// Throws IoError for a file that is missing or broken and ConfigError for one of another format. Pickles (.bin, .pt,
/// .pth) are never opened: unpickling runs code from the file.
INTROSPECT_EXPORT std::shared_ptr<const TensorSource> open_tensors(const std::filesystem::path& path);

}  // namespace introspect::io

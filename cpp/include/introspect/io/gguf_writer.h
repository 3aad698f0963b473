#pragma once

#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "introspect/export.h"

namespace introspect::io {

/// A GGUF version 3 file in the making: metadata and float32 tensors, as control vectors are stored.
class INTROSPECT_EXPORT GgufWriter {
 public:
  /// The C++ type decides the stored type (a string literal is a string).
  using Value = std::variant<bool, uint32_t, int32_t, uint64_t, int64_t, float, double, std::string,
                             std::vector<std::string>, std::vector<int32_t>, std::vector<float>>;

  explicit GgufWriter(std::string architecture);

  /// Sets "general.architecture" or any other key, replacing what it was. Throws std::invalid_argument for an empty key or
  /// text that is not UTF-8.
  void set(const std::string& key, Value value);

  /// Appends a floating tensor of one to four dimensions, stored as float32.
  /// Throws std::invalid_argument for an empty, repeated or overlong (64 bytes) name, ShapeError for another tensor.
  void add(const std::string& name, const torch::Tensor& tensor);

  /// Writes the file atomically: see write_atomically. Throws IoError.
  void write(const std::filesystem::path& path) const;

 private:
  std::vector<std::pair<std::string, Value>> metadata_;
  std::vector<std::pair<std::string, torch::Tensor>> tensors_;
};

}  // namespace introspect::io

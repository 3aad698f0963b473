#pragma once

#include <map>
#include <string>
#include <vector>

#include "introspect/io/tensor_source.h"

namespace introspect::io {

/// A TensorSource over tensors that are in memory already, such as the state dict of a transformers model.
///
/// Tensors of any device and layout; they are not copied until they are read. Names come in alphabetical order, and the
/// words for dtypes and the fingerprint are those of a safetensors file that holds the same tensors.
class INTROSPECT_EXPORT MemoryTensors : public TensorSource {
 public:
  /// Throws ShapeError for an undefined tensor or a dtype that safetensors files lack.
  explicit MemoryTensors(std::map<std::string, torch::Tensor> tensors);

  std::vector<std::string> names() const override;
  bool has(const std::string& name) const override;
  std::vector<int64_t> shape(const std::string& name) const override;
  std::string dtype(const std::string& name) const override;
  int64_t stored_bytes(const std::string& name) const override;
  void check_readable(const std::string& name) const override;
  void read_into(const std::string& name, torch::Tensor& out) const override;
  std::string fingerprint() const override;

 private:
  const torch::Tensor& at(const std::string& name) const;

  std::map<std::string, torch::Tensor> tensors_;
};

}  // namespace introspect::io

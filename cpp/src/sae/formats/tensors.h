#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/io/tensor_source.h"
#include "introspect/io/torch_zip.h"

namespace introspect::sae::formats {

/// The named tensors of a file, in a container of any kind: safetensors, npz, or what torch.save wrote.
///
/// Readers take what they know; check_all_taken names what is left over, so that nothing is passed over in silence.
class Tensors {
 public:
  explicit Tensors(const std::filesystem::path& file);

  const std::filesystem::path& path() const { return path_; }
  bool has(const std::string& name) const;
  /// Sizes of a tensor; IoError where there is none of this name.
  std::vector<int64_t> shape(const std::string& name) const;

  /// A tensor in its own floating dtype (8-bit ones in float32). Throws IoError where there is none.
  torch::Tensor take(const std::string& name);
  /// Undefined where there is none.
  torch::Tensor take_if_there(const std::string& name);
  /// A whole number that is stored as a tensor or a plain value; nothing where there is none.
  std::optional<int64_t> take_integer(const std::string& name);
  /// A plain value of torch.save; null where there is none.
  const io::TorchValue* take_plain(const std::string& name);

  /// Of what is nested, as {"state_dict": {..}}: the names inside become the names.
  bool descend(const std::string& name);

  void ignore(const std::string& name) { taken_.insert(name); }
  /// Throws IoError that names what no reader took.
  void check_all_taken() const;
  std::vector<std::string> names() const;

 private:
  void read_values(const io::TorchValue& values);

  std::filesystem::path path_;
  std::shared_ptr<const io::TensorSource> source_;       // safetensors, npz
  std::map<std::string, const io::TorchValue*> values_;  // torch.save
  io::TorchValue root_;
  std::set<std::string> taken_;
};

}  // namespace introspect::sae::formats

#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <unordered_map>

#include "introspect/io/file.h"
#include "introspect/io/tensor_source.h"

namespace introspect::io {

/// Where one tensor stands in a mapped file.
struct StoredTensor {
  std::string name;
  std::vector<int64_t> shape;  // torch's order
  std::string dtype;           // the format's own word
  std::shared_ptr<const MappedFile> file;
  size_t offset = 0;  // of the first byte, in the file
  size_t size = 0;    // in bytes
};

/// A TensorSource over tensors that lie in mapped files: what the file formats have in common.
class INTROSPECT_EXPORT MappedTensors : public TensorSource {
 public:
  std::vector<std::string> names() const override;
  bool has(const std::string& name) const override;
  std::vector<int64_t> shape(const std::string& name) const override;
  std::string dtype(const std::string& name) const override;
  int64_t stored_bytes(const std::string& name) const override;
  void check_readable(const std::string& name) const override;
  void read_into(const std::string& name, torch::Tensor& out) const override;
  std::string fingerprint() const override;

  /// The stored bytes of a tensor of any encoding, which need not be aligned. Throws IoError for an absent name, and for a
  /// file that was changed or cut.
  std::span<const std::byte> bytes(const std::string& name) const;

  /// Asks the system to read them into its memory, and returns at once.
  void will_need(const std::string& name) const;

  /// Waits until they are there; lets them go again. See MappedFile.
  void bring(const std::string& name) const;
  void let_go(const std::string& name) const;

  /// Throws IoError if the file that they stand in was changed or cut since it was opened.
  void check_unchanged(const std::string& name) const;

  /// A copy of them, uint8 [bytes], which takes no more memory than itself. Throws likewise.
  torch::Tensor read_bytes(const std::string& name) const;

 protected:
  /// `path` is what error messages call the source. Throws IoError if a name is there twice.
  MappedTensors(std::filesystem::path path, std::vector<StoredTensor> tensors);

  const std::filesystem::path& path() const { return path_; }
  const StoredTensor& at(const std::string& name) const;

 private:
  std::filesystem::path path_;
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace introspect::io

#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "introspect/io/file.h"
#include "introspect/io/tensor_source.h"

namespace introspect::io {

/// NumPy's arrays: the .npz archive of numpy.savez, or a .npy file, whose one array is called "arr_0" as savez would.
///
/// Numbers and truths of either byte order, in C's or Fortran's order, are read. Refused by name: arrays of Python objects
/// (they are pickles, which run code), structured arrays, text, dates, raw bytes (as which bfloat16 is saved), and the
/// compressed archives of numpy.savez_compressed. Every header and length is checked when the file is opened.
/// Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
class INTROSPECT_EXPORT NpzFile : public TensorSource {
 public:
  /// Throws IoError for a file that is missing, truncated, corrupt or holds anything else than such arrays.
  static std::shared_ptr<const NpzFile> open(const std::filesystem::path& path);

  /// An array in its own dtype, as a CPU tensor with its own storage. Throws IoError for an absent name.
  torch::Tensor array(const std::string& name) const;

  std::vector<std::string> names() const override;
  bool has(const std::string& name) const override;
  std::vector<int64_t> shape(const std::string& name) const override;
  std::string dtype(const std::string& name) const override;
  int64_t stored_bytes(const std::string& name) const override;
  void check_readable(const std::string& name) const override;
  void read_into(const std::string& name, torch::Tensor& out) const override;
  std::string fingerprint() const override;

 private:
  struct Array {
    torch::ScalarType dtype = torch::kFloat32;
    bool is_swapped = false, is_fortran = false;  // big-endian; the first dimension is contiguous
    std::vector<int64_t> shape;
    std::span<const std::byte> bytes;
  };
  NpzFile() = default;
  void add(const std::string& name, std::span<const std::byte> file);
  const Array& at(const std::string& name) const;

  std::shared_ptr<const MappedFile> file_;
  std::map<std::string, Array> arrays_;
};

}  // namespace introspect::io

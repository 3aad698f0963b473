#pragma once

#include <cstdint>
#include <map>
#include <string_view>
#include <variant>

#include "introspect/core/error.h"
#include "introspect/io/mapped_tensors.h"

namespace introspect::io {

/// One metadata value of a GGUF file. Integers are int64 where they fit, floats double; so are those in arrays.
using GgufValue = std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<bool>,
                               std::vector<int64_t>, std::vector<double>, std::vector<std::string>>;

/// Where one metadata value stands in a GGUF file.
struct GgufField {
  std::string key;
  uint32_t type = 0;  // GGUF's number for the value's type, or for an array's elements
  bool is_array = false;
  uint64_t count = 1;  // elements
  size_t offset = 0;   // of the first element, in the file
};

/// A GGUF file, version 2 or 3, little-endian: metadata, then tensors at aligned offsets.
///
/// Reads F64, F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K and Q6_K; the others are listed. Every
/// length, count and offset is checked against the file's size when it is opened. Metadata is decoded when asked for, so
/// a vocabulary costs nothing to a caller who does not read it.
///
/// The get_ functions throw ConfigError if the key is absent or its value of another type (IoError for a string that is
/// not UTF-8); the _or functions return the default when the key is absent and throw as well when the type is wrong.
/// Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; block layouts: ggml's ggml-quants.
class INTROSPECT_EXPORT GgufFile : public MappedTensors {
 public:
  /// Throws IoError for a file that is missing, truncated or corrupt, ConfigError for a version that is not 2 or 3.
  static std::shared_ptr<const GgufFile> open(const std::filesystem::path& path);

  uint32_t version() const { return version_; }

  /// In the order of the file.
  std::vector<std::string> keys() const;
  bool has_key(const std::string& key) const;
  GgufValue value(const std::string& key) const;
  std::map<std::string, GgufValue> metadata() const;  // all of it

  std::string get_string(const std::string& key) const;
  int64_t get_int(const std::string& key) const;   // of any integer type
  double get_float(const std::string& key) const;  // of any float or integer type
  bool get_bool(const std::string& key) const;
  std::vector<std::string> get_strings(const std::string& key) const;
  /// The same where they stand in the file's memory, for as long as this object lives.
  std::vector<std::string_view> get_texts(const std::string& key) const;
  std::vector<int64_t> get_ints(const std::string& key) const;  // an array of any integer type or of booleans
  std::vector<double> get_floats(const std::string& key) const;

  std::string get_string_or(const std::string& key, std::string otherwise) const;
  int64_t get_int_or(const std::string& key, int64_t otherwise) const;
  double get_float_or(const std::string& key, double otherwise) const;
  bool get_bool_or(const std::string& key, bool otherwise) const;

  /// Lets go of the memory that the metadata's bytes take; they are read again when they are asked for.
  void let_go_metadata() const;

  /// The "general.architecture" key: "qwen2", "llama", "controlvector".
  std::string architecture() const { return get_string("general.architecture"); }

 private:
  GgufFile(std::shared_ptr<const MappedFile> file, uint32_t version, std::vector<GgufField> fields,
           std::vector<StoredTensor> tensors, size_t header_bytes);

  const GgufField& field(const std::string& key) const;
  ConfigError wrong_type(const std::string& key, const char* wanted) const;

  std::shared_ptr<const MappedFile> file_;
  uint32_t version_;
  std::vector<GgufField> fields_;
  size_t header_bytes_;  // of everything before the tensors' data
  std::unordered_map<std::string, size_t> field_index_;
};

}  // namespace introspect::io

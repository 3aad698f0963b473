#pragma once

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "introspect/io/mapped_tensors.h"
#include "io/packed_tensors.h"

namespace introspect::io {

/// The tensors of mapped files in which some stand in several parts each: what the packings have in common.
class PackedSource : public TensorSource {
 public:
  std::vector<std::string> names() const override;
  bool has(const std::string& name) const override;
  std::vector<int64_t> shape(const std::string& name) const override;
  std::string dtype(const std::string& name) const override;
  int64_t stored_bytes(const std::string& name) const override;
  void check_readable(const std::string& name) const override;
  void read_into(const std::string& name, torch::Tensor& out) const override;
  std::string fingerprint() const override;

 protected:
  using Sizes = std::vector<int64_t>;

  PackedSource(std::shared_ptr<const MappedTensors> source, Packing packing);

  /// The tensor `name` is packed, and stands where its part `first_part` does.
  void add(const std::string& first_part, const std::string& name);

  /// Throws ConfigError where no tensor was added.
  void check_some_packed() const;

  virtual Sizes packed_shape(const std::string& name) const = 0;
  /// The tensors of the file that it is unpacked from.
  virtual std::vector<std::string> parts(const std::string& name) const = 0;
  /// Throws ConfigError for parts that are missing or do not fit.
  virtual void check_parts(const std::string& name) const = 0;
  /// [shape], float32.
  virtual torch::Tensor unpack(const std::string& name) const = 0;

  const MappedTensors& source() const { return *source_; }
  const Packing& packing() const { return packing_; }
  const std::string& first_part(const std::string& name) const { return first_parts_.at(name); }

  /// Throws ConfigError for a part that is missing, of another shape or stored otherwise than one of `dtypes`.
  void check_part(const std::string& name, const Sizes& wanted,
                  std::initializer_list<std::string_view> dtypes) const;

  /// A part of whole numbers: uint8, int8, int32 or int64.
  torch::Tensor whole_numbers(const std::string& name) const;

 private:
  bool is_packed(const std::string& name) const { return first_parts_.contains(name); }

  std::shared_ptr<const MappedTensors> source_;
  Packing packing_;
  std::unordered_map<std::string, std::string> first_parts_;  // of each packed tensor
  std::unordered_map<std::string, std::string> stands_for_;   // the other way
};

}  // namespace introspect::io

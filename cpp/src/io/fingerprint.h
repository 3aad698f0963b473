#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace introspect::io {

/// What TensorSource::fingerprint takes of one tensor.
struct TensorSample {
  std::string_view name;
  std::string_view dtype;
  std::span<const int64_t> shape;
  size_t size = 0;                         // of the whole tensor, in bytes
  std::span<const std::byte> first, last;  // at most kSampledBytes each
};

constexpr size_t kSampledBytes = 4096;

/// The hash of the samples, which must come in the order of the names.
std::string fingerprint_of(const std::vector<TensorSample>& by_name);

}  // namespace introspect::io

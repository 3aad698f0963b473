#include "io/fingerprint.h"

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

namespace introspect::io {

std::string fingerprint_of(const std::vector<TensorSample>& by_name) {
  Sha256 hash;
  for (const auto& tensor : by_name) {
    hash.update(concat(tensor.name.size(), ':', tensor.name, ' ', tensor.dtype, ' ', tensor.size));
    for (const int64_t size : tensor.shape) hash.update(concat(' ', size));
    hash.update("\n")
        .update(tensor.first.data(), tensor.first.size())
        .update(tensor.last.data(), tensor.last.size());
  }
  return hash.hex();
}

}  // namespace introspect::io

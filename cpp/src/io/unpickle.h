#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include <torch/types.h>

#include "introspect/io/torch_zip.h"

namespace introspect::io {

/// The storage of a tensor: a 1-dimensional tensor of `dtype`, `size` elements of the record `key`. Throws IoError.
using ReadStorage =
    std::function<torch::Tensor(const std::string& key, torch::ScalarType dtype, int64_t size)>;

/// The value that a pickle of protocol 2 to 5 makes, of those instructions and names that read_torch_zip knows.
/// `who` begins every message. Throws IoError.
TorchValue unpickle(std::span<const std::byte> bytes, const ReadStorage& storage, const std::string& who,
                    UnknownObjects unknown);

/// torch's class of storages of a dtype ("FloatStorage"); null for one without.
const char* storage_class(torch::ScalarType dtype);

}  // namespace introspect::io

#pragma once

#include <torch/types.h>

#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

#include "core/dequantise.h"

namespace introspect::io {

/// The elements of a shape; nullopt if ATen could not count them or their bytes in 64 bits, sizes of zero taken as one.
std::optional<int64_t> count_elements(const std::vector<int64_t>& shape);

/// The floating dtype that an unquantised encoding is ("F32", "BF16", "F8_E4M3"); nullopt for all others.
std::optional<torch::ScalarType> float_dtype(std::string_view encoding);

/// The layout of an encoding that decode can read; nullopt for all others.
std::optional<BlockLayout> readable_layout(std::string_view encoding);

/// Converts or dequantises a whole tensor's bytes into `out`, contiguous on the CPU in float64, float32, float16 or
/// bfloat16. `encoding` is readable and `bytes` holds exactly out.numel() values of it, both checked by the caller.
void decode(std::string_view encoding, const std::byte* bytes, torch::Tensor& out);

}  // namespace introspect::io

#pragma once

#include <torch/types.h>

#include <optional>
#include <string_view>

namespace introspect::io {

/// The safetensors format's word for a dtype ("BF16"); nullopt for one it lacks.
std::optional<std::string_view> safetensors_word(torch::ScalarType dtype);

}  // namespace introspect::io

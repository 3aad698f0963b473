#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "core/dequantise.h"

namespace introspect::io {

// Numbers of the GGUF format, as its specification gives them.

constexpr uint32_t kGgufMagic = 0x46554747;  // "GGUF"
constexpr uint32_t kGgufDefaultAlignment = 32;
constexpr uint32_t kGgufMaxDims = 4;
constexpr size_t kGgufMaxTensorName = 64;

enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

/// The bytes of a number or boolean; nullopt for strings, arrays and numbers that are no type.
std::optional<size_t> scalar_size(GgufType type);

/// A tensor encoding of ggml.
struct GgmlEncoding {
  std::string name;                   // "Q4_K"; "type 77" for a number that this library does not know
  std::optional<BlockLayout> layout;  // nullopt for such a number
};

GgmlEncoding ggml_encoding(uint32_t number);

/// The number of float32 tensors.
constexpr uint32_t kGgmlFloat32 = 0;

}  // namespace introspect::io

#include "io/gguf_types.h"

#include <string_view>

#include "introspect/core/check.h"
#include "io/encodings.h"

namespace introspect::io {
namespace {

struct KnownEncoding {
  uint32_t number;
  std::string_view name;
  BlockLayout layout{};  // of those that decode cannot read, so that their extent can be checked
};

// ggml's enum ggml_type; the numbers left out were withdrawn.
constexpr KnownEncoding kEncodings[] = {
    {0, "F32"},
    {1, "F16"},
    {2, "Q4_0"},
    {3, "Q4_1"},
    {6, "Q5_0"},
    {7, "Q5_1"},
    {8, "Q8_0"},
    {9, "Q8_1", {32, 36}},
    {10, "Q2_K"},
    {11, "Q3_K"},
    {12, "Q4_K"},
    {13, "Q5_K"},
    {14, "Q6_K"},
    {15, "Q8_K", {256, 292}},
    {16, "IQ2_XXS", {256, 66}},
    {17, "IQ2_XS", {256, 74}},
    {18, "IQ3_XXS", {256, 98}},
    {19, "IQ1_S", {256, 50}},
    {20, "IQ4_NL", {32, 18}},
    {21, "IQ3_S", {256, 110}},
    {22, "IQ2_S", {256, 82}},
    {23, "IQ4_XS", {256, 136}},
    {24, "I8", {1, 1}},
    {25, "I16", {1, 2}},
    {26, "I32", {1, 4}},
    {27, "I64", {1, 8}},
    {28, "F64"},
    {29, "IQ1_M", {256, 56}},
    {30, "BF16"},
    {34, "TQ1_0", {256, 54}},
    {35, "TQ2_0", {256, 66}},
    {39, "MXFP4", {32, 17}},
    {40, "NVFP4", {64, 36}},
    {41, "Q1_0", {128, 18}},
};

}  // namespace

std::optional<size_t> scalar_size(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    default:
      return std::nullopt;
  }
}

GgmlEncoding ggml_encoding(uint32_t number) {
  for (const auto& known : kEncodings) {
    if (known.number != number) continue;
    const auto readable = readable_layout(known.name);
    return {std::string(known.name), readable ? *readable : known.layout};
  }
  return {concat("type ", number), std::nullopt};
}

}  // namespace introspect::io

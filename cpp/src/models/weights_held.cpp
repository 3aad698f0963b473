#include "introspect/models/weights_held.h"

#include <c10/core/ScalarType.h>

#include "models/file_blocks.h"

namespace introspect::models {

namespace {

std::string dtype_name(torch::ScalarType dtype) {
  switch (dtype) {
    case torch::kFloat64:
      return "float64";
    case torch::kFloat32:
      return "float32";
    case torch::kBFloat16:
      return "bfloat16";
    case torch::kFloat16:
      return "float16";
    default:
      return c10::toString(dtype);
  }
}

}  // namespace

WeightsHeld weights_held(const Model& model) {
  const auto& w = model.weights();
  if (w.W_E.is_quantised() || w.W_U.is_quantised()) return WeightsHeld::kAsStored;
  if (model.keeps_blocks())
    return model.quantised_weights().empty() ? WeightsHeld::kDense : WeightsHeld::kAsStored;
  const auto* blocks = w.read_block.target<FileBlocks>();
  return blocks != nullptr ? blocks->held : WeightsHeld::kDense;
}

std::string to_string(WeightsHeld held) {
  return held == WeightsHeld::kDense ? "dense" : "as stored";
}

bool multiplies_unrounded(const Model& model) {
  return c10::elementSize(model.dtype()) == 2 && weights_held(model) == WeightsHeld::kAsStored;
}

std::string precision_name(const Model& model) {
  const auto name = dtype_name(model.dtype());
  return multiplies_unrounded(model) ? name + ", weights as stored" : name;
}

}  // namespace introspect::models

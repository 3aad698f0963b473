#include "introspect/models/place_operands.h"

#include "core/on_device.h"

namespace introspect::models {

torch::Tensor OperandPlacer::placed(const torch::Tensor& tensor, torch::Device device) {
  if (tensor.device() == device) return tensor;
  auto& held = placed_[tensor.unsafeGetTensorImpl()];
  if (held.empty()) held.push_back(tensor);
  for (const auto& copy : held)
    if (copy.device() == device) return copy;
  return held.emplace_back(on_device(tensor, device));
}

hooks::Intervention OperandPlacer::operator()(hooks::Intervention intervention) {
  for (auto& [layer, operands] : intervention.values) {
    const auto device = layer >= 0 && layer < model_.cfg().n_layers ? model_.device(layer) : model_.device();
    hooks::Operands::Tensors tensors;
    for (const auto& [name, tensor] : operands) tensors[name] = placed(tensor, device);
    operands = std::move(tensors);
  }
  return intervention;
}

}  // namespace introspect::models

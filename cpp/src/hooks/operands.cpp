#include "introspect/hooks/operands.h"

#include <algorithm>
#include "core/on_device.h"

namespace introspect::hooks {

Operands::Operands(torch::Tensor v) {
  if (v.defined()) tensors_.emplace("v", std::move(v));
}

Operands::Operands(Tensors tensors) : tensors_(std::move(tensors)) {
  std::erase_if(tensors_, [](const auto& named) { return !named.second.defined(); });
}

const torch::Tensor& Operands::get(std::string_view name) const {
  static const torch::Tensor none;
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? none : found->second;
}

bool Operands::requires_grad() const {
  return std::any_of(begin(), end(), [](const auto& named) { return named.second.requires_grad(); });
}

Operands Operands::to(torch::Device device) const {
  auto out = *this;
  for (auto& [name, tensor] : out.tensors_) tensor = on_device(tensor, device);
  return out;
}

Operands Operands::clone() const {
  auto out = *this;
  for (auto& [name, tensor] : out.tensors_) tensor = tensor.clone();
  return out;
}

}  // namespace introspect::hooks

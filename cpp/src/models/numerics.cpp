#include "models/numerics.h"

#include <set>

#include "introspect/models/weights_held.h"
#include "introspect/ops/bfloat16_products.h"

namespace introspect::models {
namespace {

std::set<std::string> device_kinds(const Model& model) {
  const auto kind = [](const torch::Device& device) {
    return c10::DeviceTypeName(device.type(), /*lower_case=*/true);
  };
  std::set<std::string> out{kind(model.device())};
  for (int64_t layer = 0; layer < model.cfg().n_layers; ++layer) out.insert(kind(model.device(layer)));
  return out;
}

}  // namespace

std::string device_kind(const Model& model) {
  std::string out;
  for (const auto& kind : device_kinds(model)) out += (out.empty() ? "" : "+") + kind;
  return out;
}

std::map<std::string, std::string> numerics_of(const Model& model) {
  std::map<std::string, std::string> out{
      {"precision", precision_name(model)}, {"device", device_kind(model)}, {"numerics", kNumericsVersion}};
  if (model.dtype() == torch::kBFloat16 && device_kinds(model).contains("cpu"))
    out["products"] = ops::bfloat16_products();
  return out;
}

}  // namespace introspect::models

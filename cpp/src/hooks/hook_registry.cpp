#include "introspect/hooks/hook_registry.h"

#include <algorithm>

#include "introspect/core/check.h"

namespace introspect::hooks {

HookRegistry::HookRegistry(HookPoints points) : points_(points), table_(points_.n_sites()) {}

void HookRegistry::add(std::string_view name, Callback callback) {
  table_[points_.index(points_.parse(name))].push_back({nullptr, std::move(callback)});
  ++n_actions_;
}

void HookRegistry::add(const Intervention& intervention) {
  validate(intervention, points_.n_layers, points_.d_model);
  if (intervention.strength == 0) return;
  const auto shared = std::make_shared<const Intervention>(intervention);
  for (const auto& [layer, direction] : intervention.directions) {
    auto& actions = table_[points_.index({intervention.point, layer})];
    const auto after_interventions = std::find_if(actions.begin(), actions.end(),
                                                  [](const Action& a) { return a.intervention == nullptr; });
    actions.insert(after_interventions, {shared, nullptr});
    ++n_actions_;
  }
}

torch::Tensor HookRegistry::run(Site site, const torch::Tensor& x, int64_t offset) const {
  torch::Tensor current = x;
  for (const Action& action : table_[points_.index(site)]) {
    if (action.intervention) {
      current = apply(*action.intervention, site.layer, current, offset);
      continue;
    }
    const auto replacement = action.callback(current, site);
    if (!replacement) continue;
    check<HookError>(replacement->sizes() == current.sizes() &&
                         replacement->scalar_type() == current.scalar_type() &&
                         replacement->device() == current.device(),
                     "hook at '", hook_name(site), "' must return ", current.sizes(), " ",
                     current.scalar_type(), " on ", current.device(), ", got ", replacement->sizes(), " ",
                     replacement->scalar_type(), " on ", replacement->device());
    current = *replacement;
  }
  return current;
}

}  // namespace introspect::hooks

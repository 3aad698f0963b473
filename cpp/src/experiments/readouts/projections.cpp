// The residual at the read position on the unit directions that a run is given: {name: {block: number}}.

#include <string>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "experiments/cell_keys.h"
#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  std::map<std::string, Directions> units;  // float32
  for (const auto& [name, vector] : request.options.directions)
    for (const auto& [layer, direction] : vector.directions())
      units[name][layer] = direction / direction.norm().clamp_min(1e-30);
  if (units.empty()) return std::nullopt;
  PreparedReadout out;
  out.needs = {Need::residuals()};
  out.fields = {{"projections", static_cast<int64_t>(units.size())}};
  Value::Fields hashes;
  for (const auto& [name, directions] : units) hashes.emplace_back(name, directions_hash(directions));
  out.key = {{"directions", hashes}};
  out.read = [units](const ReadoutInputs& inputs) -> Value::Fields {
    const auto& resid_LD = inputs.needed[0][0];
    Value::Fields by_name;
    for (const auto& [name, directions] : units) {
      Value::Fields by_layer;
      for (const auto& [layer, direction] : directions)
        by_layer.emplace_back(
            std::to_string(layer),
            resid_LD[layer].to(torch::kFloat64).dot(direction.to(torch::kFloat64)).item<double>());
      by_name.emplace_back(name, by_layer);
    }
    return {{"projections", by_name}};
  };
  return out;
}

std::string problem(const std::string& field, const Value& value) {
  const auto* const by_name = value.get_if<Value::Fields>();
  if (!by_name) return wrong(field, "an object", value);
  for (const auto& [name, layers] : *by_name) {
    const auto* const by_layer = layers.get_if<Value::Fields>();
    if (!by_layer) return wrong(field + "." + name, "an object", layers);
    for (const auto& [layer, number] : *by_layer) {
      if (layer.empty() || layer.find_first_not_of("0123456789") != std::string::npos)
        return concat("a layer of projections must be a whole number, got '", layer, "'");
      if (auto what = problem_of_number(number, field + "." + name); !what.empty()) return what;
    }
  }
  return "";
}

const bool registered = register_library_readout({
    .name = "projections",
    .prepare = prepare,
    .fields = {"projections"},
    .check = problem,
    .by_name = false,
    .order = 90,
});

}  // namespace
}  // namespace introspect::experiments

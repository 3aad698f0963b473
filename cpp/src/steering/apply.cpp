#include "introspect/steering/apply.h"

#include <map>

#include "introspect/core/check.h"

namespace introspect::steering {

namespace {

using Values = std::map<int64_t, torch::Tensor>;
using Range = std::optional<std::pair<int64_t, int64_t>>;

/// The operands of one vector, by layer: [D], or [2, D] with a second direction.
Values operands(const ControlVector& vector, int64_t n_layers, const Range& layers,
                const ControlVector* second) {
  const auto own = vector.layers();
  const auto [first, last] = layers.value_or(std::pair{own.front(), own.back()});
  auto out = directions_in(vector, n_layers, first, last);
  if (second == nullptr) return out;
  check<ShapeError>(second->d_model() == vector.d_model(), "steering: the second vector must be of width ",
                    vector.d_model(), ", got ", second->d_model());
  for (auto& [layer, direction] : out) {
    const auto found = second->directions().find(layer);
    check<ConfigError>(found != second->directions().end(),
                       "steering: the second vector must have a direction for layer ", layer, ", got none");
    direction = torch::stack({direction, found->second});
  }
  return out;
}

hooks::Intervention with(const hooks::Intervention& how, const Values& values, std::vector<int64_t> rows) {
  auto out = how;
  out.values = {values.begin(), values.end()};
  out.rows = std::move(rows);
  return out;
}

}  // namespace

std::vector<hooks::Intervention> as_interventions(const std::vector<const ControlVector*>& vectors,
                                                  const hooks::Intervention& how, int64_t n_layers,
                                                  std::optional<std::pair<int64_t, int64_t>> layers,
                                                  const ControlVector* second) {
  check<std::invalid_argument>(!vectors.empty(), "steering: at least one vector is required");
  if (vectors.size() == 1 && vectors[0] != nullptr && how.rows.size() != 1)
    return {with(how, operands(*vectors[0], n_layers, layers, second), how.rows)};
  check<std::invalid_argument>(how.rows.empty() || how.rows.size() == vectors.size(),
                               "steering: one vector for all rows, or one for each, is required, got ",
                               vectors.size(), " for ", how.rows.size());
  std::vector<hooks::Intervention> out;
  std::map<int64_t, std::vector<std::pair<int64_t, torch::Tensor>>> by_layer;  // layer -> (row, operand)
  const bool one_by_one = second != nullptr || hooks::find_operator(how.op).check_operands ||
                          hooks::head_axis(how.point).has_value();
  int64_t width = 0;
  for (size_t place = 0; place < vectors.size(); ++place) {
    const auto* vector = vectors[place];
    if (vector == nullptr) continue;
    if (width == 0) width = vector->d_model();
    check<ShapeError>(vector->d_model() == width, "steering: all vectors must be of one width, got ", width,
                      " and ", vector->d_model());
    const int64_t row = how.rows.empty() ? static_cast<int64_t>(place) : how.rows[place];
    auto values = operands(*vector, n_layers, layers, second);
    if (one_by_one)
      out.push_back(with(how, values, {row}));
    else
      for (auto& [layer, operand] : values) by_layer[layer].emplace_back(row, operand);
  }
  // Layers in which the same rows are steered go together.
  std::map<std::vector<int64_t>, Values> by_rows;
  for (const auto& [layer, entries] : by_layer) {
    std::vector<int64_t> rows;
    std::vector<torch::Tensor> stacked;
    for (const auto& [row, operand] : entries) {
      rows.push_back(row);
      stacked.push_back(operand);
    }
    by_rows[rows][layer] = torch::stack(stacked);
  }
  for (auto& [rows, values] : by_rows) out.push_back(with(how, values, rows));
  return out;
}

}  // namespace introspect::steering

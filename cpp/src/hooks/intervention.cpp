#include "introspect/hooks/intervention.h"

#include <cmath>

#include "introspect/core/check.h"

namespace introspect::hooks {

torch::Tensor apply(const Intervention& intervention, int64_t layer, const torch::Tensor& x_BTD,
                    int64_t offset) {
  const auto found = intervention.directions.find(layer);
  const int64_t first = std::max<int64_t>(intervention.first_position - offset, 0);
  const int64_t last = std::min(intervention.last_position - offset, x_BTD.size(1));
  if (found == intervention.directions.end() || intervention.strength == 0 || first >= last) return x_BTD;

  const int64_t B = x_BTD.size(0), D = x_BTD.size(2);
  auto direction = found->second.to(x_BTD.device()) * intervention.strength;
  check<ShapeError>(direction.size(-1) == D && (direction.dim() == 1 || direction.size(0) == B),
                    "intervention: the direction of layer ", layer, " must be [", D, "] or [", B, ", ", D,
                    "], got ", direction.sizes());
  if (direction.dim() == 2) direction = direction.unsqueeze(1);
  direction = direction.to(x_BTD.scalar_type());
  if (first == 0 && last == x_BTD.size(1)) return x_BTD + direction;
  const auto changed_BtD = x_BTD.narrow(1, first, last - first) + direction;
  return at::cat({x_BTD.narrow(1, 0, first), changed_BtD, x_BTD.narrow(1, last, x_BTD.size(1) - last)}, 1);
}

void validate(const Intervention& intervention, int64_t n_layers, int64_t d_model) {
  check<std::invalid_argument>(std::isfinite(intervention.strength),
                               "intervention: the strength must be finite, got ", intervention.strength);
  for (const auto& [layer, direction] : intervention.directions) {
    check<std::out_of_range>(layer >= 0 && layer < n_layers, "intervention: layers must be 0 to ",
                             n_layers - 1, ", got ", layer);
    check<ShapeError>((direction.dim() == 1 || direction.dim() == 2) && direction.size(-1) == d_model,
                      "intervention: the direction of layer ", layer, " must be [", d_model, "] or [batch, ",
                      d_model, "], got ", direction.sizes());
    check<std::invalid_argument>(at::isfinite(direction).all().item<bool>(),
                                 "intervention: the direction of layer ", layer, " holds NaN or infinity");
  }
}

}  // namespace introspect::hooks

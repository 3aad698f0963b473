#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "introspect/core/check.h"
#include "introspect/experiments/run.h"

namespace introspect::experiments {

std::pair<int64_t, int64_t> LayerRange::resolve(int64_t n_layers) const {
  if (is_fraction) {
    check<std::out_of_range>(first >= 0 && first <= last && last <= 1,
                             "LayerRange: fractions of the depth must be in order and from 0 to 1, got ",
                             first, " to ", last);
    const auto block = [&](double fraction) {
      return std::min<int64_t>(std::llround(fraction * static_cast<double>(n_layers)), n_layers - 1);
    };
    return {block(first), block(last)};
  }
  check<std::out_of_range>(first >= 0 && first <= last && last < static_cast<double>(n_layers),
                           "LayerRange: layers must be in order and from 0 to ", n_layers - 1, ", got ",
                           first, " to ", last);
  return {static_cast<int64_t>(first), static_cast<int64_t>(last)};
}

StrengthUnit parse_strength_unit(const std::string& name) {
  if (name == "absolute") return StrengthUnit::absolute;
  check<std::invalid_argument>(name == "residual", "strength_unit must be absolute or residual, got '", name,
                               "'");
  return StrengthUnit::residual;
}

}  // namespace introspect::experiments

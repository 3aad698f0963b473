#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "introspect/export.h"
#include "introspect/hooks/intervention.h"
#include "introspect/steering/control_vector.h"

namespace introspect::steering {

/// Control vectors as something to do to a forward pass of a model of `n_layers`.
///
/// `how` says what is done (operator, strength, parameters), where (point, positions, text) and to which rows; its values
/// are not used. One vector is for all these rows; several are for one row each, those of `how` or else 0, 1, 2, ...,
/// and null leaves its row as it is. Of each vector the directions of the blocks `layers` (first and last, both included;
/// none: all it has) are taken. `second` gives operators on a plane their second direction.
///
/// Throws std::invalid_argument for no vectors or another number of rows, std::out_of_range for layers that are not in
/// order or not in the model, ShapeError for vectors of different widths, ConfigError where a vector has no direction in
/// the range, or `second` has none for a layer.
INTROSPECT_EXPORT std::vector<hooks::Intervention> as_interventions(
    const std::vector<const ControlVector*>& vectors, const hooks::Intervention& how, int64_t n_layers,
    std::optional<std::pair<int64_t, int64_t>> layers = {}, const ControlVector* second = nullptr);

}  // namespace introspect::steering

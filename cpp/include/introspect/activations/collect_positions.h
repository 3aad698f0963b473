#pragma once

#include <string>
#include <vector>

#include "introspect/activations/collect.h"
#include "introspect/export.h"

namespace introspect::activations {

/// collect_activations at several positions of each text, in one pass over the texts; in the order of `positions`, and
/// options.read.position is not used. Throws as it, and std::invalid_argument for no positions.
INTROSPECT_EXPORT std::vector<Activations> collect_positions(const models::Model& model,
                                                             const std::vector<std::string>& texts,
                                                             const std::vector<ReadPosition>& positions,
                                                             const CollectOptions& options = {});

}  // namespace introspect::activations

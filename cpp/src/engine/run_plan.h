#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

#include "engine/plan.h"

namespace introspect::engine {

/// Takes the captures of a finished pass, as (index among the plan's captures, what was kept).
using OnCaptured = std::function<void(std::vector<std::pair<int64_t, Captured>>)>;

/// Runs a plan, pass by pass; in a pass layer by layer, everything that is at one layer side by side.
///
/// All pieces of a layer are nodes of one token tree, so their products are one product and their attention walks up
/// the tree; where an intervention parts two pieces, the residual they had in common is taken by both. Equal to running
/// every sequence by itself up to rounding. `models` are those that pieces name. An exception from `progress` or
/// `on_captured` ends the run; what was handed out before stays valid.
INTROSPECT_EXPORT void run_plan(const Plan& plan,
                                const std::vector<std::shared_ptr<const models::Model>>& models,
                                const OnCaptured& on_captured, const Progress& progress = {});

}  // namespace introspect::engine

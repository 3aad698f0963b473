#pragma once

#include <string>

#include "introspect/experiments/result.h"
#include "introspect/models/model.h"

#include "experiments/design.h"

namespace introspect::experiments {

/// Throws Error about an reading without an injection that is not finite. Runs it once more to name the first block whose
/// residual stream is not, and says what to do.
[[noreturn]] void throw_not_finite(const models::Model& model, const std::string& who,
                                   const Protocol& protocol, const Scene& scene, const Ask& ask);

/// Adds warnings of settings whose readings failed, and of those that take the probability away from the answers.
void warn_of_broken_settings(Result& result);

}  // namespace introspect::experiments

#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "introspect/models/model.h"

namespace introspect::experiments {

/// The log-probability of a text's tokens after its first one, in nats: 0 of one token.
///
/// resid_TD [T, D]: the last residuals after all of its tokens but the last one.
double rest_log_prob(const models::Model& model, const std::vector<int64_t>& ids,
                     const torch::Tensor& resid_TD);

}  // namespace introspect::experiments

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/attribution.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

/// Why a model prefers one token to another, from one position of one text.
struct Prediction {
  Attribution exact;    // to the difference of logits, expected less actual: values [parts, 1, 1]
  torch::Tensor naive;  // [components]: each through the whole final norm alone; no bias, no remainder
  std::vector<std::string> streams;  // "0_pre", "0_mid", ..., "final_post"
  torch::Tensor logits;     // [streams, 2]: expected and actual through the logit lens, float32 at least
  torch::Tensor log_probs;  // [streams, 2], in nats
  torch::Tensor ranks;      // int64 [streams, 2]: from 1, the most likely token
  std::optional<int64_t>
      turn;  // the last stream in which `expected` was not behind; none: it always was, or wins
};

/// The hook names that debug_prediction needs of its position, beside those of attribution_points.
INTROSPECT_EXPORT std::vector<std::string> prediction_points(const models::Model& model);

/// Takes the difference of two tokens' logits apart, and follows both through the layers.
///
/// The exact parts are those of direct_logit_attribution by component. The naive ones are Model::readout of
/// each component alone, with a norm of its own, as is often done: they neither sum to the difference nor keep the
/// components' sizes. The lens is Model::readout of each stream.
/// activations: of one text and one position, [1, 1, ...]. Throws as direct_logit_attribution does.
INTROSPECT_EXPORT Prediction debug_prediction(const models::Model& model, const NamedActivations& activations,
                                              int64_t expected, int64_t actual);

}  // namespace introspect::analysis

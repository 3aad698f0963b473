#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "introspect/core/progress.h"
#include "introspect/experiments/protocol.h"
#include "introspect/experiments/run.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::experiments {

struct EstimateOptions {
  std::optional<std::vector<double>> strengths;  ///< as ExperimentOptions has them, and so for what follows
  std::optional<StrengthUnit> strength_unit;
  /// Control questions. Default: the protocol's; empty: none.
  std::optional<std::vector<std::string>> questions;
  std::optional<std::string> controls;
  /// Random rotations of every vector, those that run_experiment makes of the same seed. None unless asked for:
  /// estimates rank ranges, and only what was measured is compared with rotations.
  int64_t nulls = 0;
  uint64_t seed = 0;
  Progress progress;  ///< counts questions
};

/// What one injection is estimated to do to one question's log-odds.
struct LayerEstimate {
  std::string concept_name;
  double strength = 0.0;
  std::string question;
  std::string question_kind;  ///< "introspection" or "control"
  int64_t null_index = -1;    ///< 0, 1, ... for a random rotation of the vector
  double log_odds_base = 0.0;
  /// Part of each block in the shift of the log-odds, nats; 0 where the vector has no direction. A range's estimate
  /// is the sum over its blocks.
  std::vector<double> by_layer;
  std::string asked_in = kOwnConversation;  ///< the conversation of a control question
};

/// First-order estimates of what run_experiment would measure, for every layer range at once.
///
/// With g the gradient of a question's log-odds by the residual stream after block l of the unsteered run, summed over
/// the injected tokens (and those after them where the protocol keeps the steering on), adding strength * d to the
/// output of block l shifts the log-odds by strength * g.d to first order. The parts of several blocks add up, so one
/// forward and one backward pass a question give all L (L + 1) / 2 ranges of every vector, strength and rotation.
///
/// Throws Error for log-odds that are not finite, naming the first block whose residual stream is not.
///
/// They are estimates: exact in the limit of strength 0, with an error that grows with its square. Sampling
/// temperatures and stores have no part in them. Questions are asked in the order of run_experiment. Throws as
/// run_experiment does, for a vector without directions instead of a range without.
/// Source: attribution patching, Nanda 2023; Kramár et al. 2024, arXiv:2403.00745.
INTROSPECT_EXPORT std::vector<LayerEstimate> estimate_layers(const models::Model& model,
                                                             const Protocol& protocol,
                                                             const NamedVectors& vectors,
                                                             const EstimateOptions& options = {});

}  // namespace introspect::experiments

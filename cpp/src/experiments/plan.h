#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/experiments/run.h"

namespace introspect::experiments {

using Ids = std::vector<int64_t>;
using Directions = std::map<int64_t, torch::Tensor>;  // block -> float32 [D]

/// One question: what follows the injected messages, and what is read at its end.
struct Ask {
  std::string question;
  std::string kind;  // "introspection" or "control"
  Ids after;
  bool keeps_steering = false;
  bool samples = false;
  Ids report_ids;
};

/// Questions that share everything up to the end of the injected messages.
struct Scene {
  Ids before, injected;
  std::vector<Ask> asks;

  int64_t span_begin() const { return static_cast<int64_t>(before.size()); }
  int64_t span_end() const { return static_cast<int64_t>(before.size() + injected.size()); }
  int64_t longest(int64_t new_tokens) const {
    int64_t longest = 0;
    for (const auto& ask : asks)
      longest = std::max(longest, static_cast<int64_t>(ask.after.size()) + (ask.samples ? new_tokens : 0));
    return span_end() + longest;
  }
};

/// One vector, or rotation of it, at one strength over one range.
struct Injection {
  std::string concept_name;
  double strength = 0.0;
  int64_t first_layer = 0, last_layer = 0;
  int64_t null_index = -1;
  Directions directions;  // of the blocks in the range, strength not applied
};

/// Everything a run does, worked out and checked before its first forward pass.
struct Plan {
  std::vector<Scene> scenes;  // the protocol's own first
  std::vector<Injection> injections;
  std::vector<std::string> warnings;
  int64_t yes_id = 0, no_id = 0;
};

/// Throws as run_experiment does.
Plan make_plan(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
               const ExperimentOptions& options);

}  // namespace introspect::experiments

#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/experiments/readouts.h"
#include "introspect/experiments/run.h"

#include "experiments/needs.h"

namespace introspect::experiments {

using Ids = std::vector<int64_t>;
using Directions = std::map<int64_t, torch::Tensor>;  // block -> float32 [D]

using Ranges = std::vector<std::pair<int64_t, int64_t>>;  // [first, last)

/// One question: what follows the injected spans, and what is read at its end.
struct Ask : Asked {
  Ids after;
  bool keeps_steering = false;
  bool samples = false;

  bool is_control() const { return question_kind == "control"; }
};

/// Questions that share everything up to the end of the injected spans.
struct Scene {
  Ids before;    // up to the first injected token
  Ids injected;  // from there to the last one
  Ranges spans;  // those of them that are injected
  std::vector<Ask> asks;
  std::map<std::string, Ids>
      others;  // by Injection::other: what stands in the place of `injected` in the other conversation

  int64_t span_begin() const { return static_cast<int64_t>(before.size()); }
  int64_t span_end() const { return static_cast<int64_t>(before.size() + injected.size()); }
  bool is_whole() const {
    return spans.size() == 1 && spans[0] == std::pair(int64_t{0}, span_end() - span_begin());
  }
  int64_t longest(int64_t new_tokens) const {
    int64_t longest = 0;
    for (const auto& ask : asks)
      longest = std::max(longest, static_cast<int64_t>(ask.after.size()) + (ask.samples ? new_tokens : 0));
    return span_end() + longest;
  }
};

/// One vector, or rotation of it, at one strength over one range; or what stands in its place.
struct Injection : Injected {
  Directions directions;   // of the blocks in the range, strength not applied
  double factor = 1.0;     // on the strength
  std::string other = {};  // which of Scene::others it takes
  uint64_t seed = 0;       // of what is drawn
};

/// What a reading is of. Nothing is injected for nullptr.
Setting setting_of(const Ask& ask, const Injection* injection);

/// A readout that this run asks for.
struct ActiveReadout {
  std::shared_ptr<const Readout> readout;
  Value parameter;  // false where it is not asked for by name
  PreparedReadout prepared;
};

/// What is read at one kind of question, and what it needs of the graph.
struct Reads {
  std::vector<const ActiveReadout*> active;
  std::vector<std::vector<MergedNeeds::Source>> sources;  // of each one's needs
  MergedNeeds needs;
  MergedNeeds::Source unsteered_resid;  // after the last block, where one of them compares
  bool compares = false, samples = false;
};

/// The options with what was left out filled in. Throws std::invalid_argument for a unit without strengths.
ExperimentOptions with_defaults(ExperimentOptions options);

/// Everything a run does, worked out and checked before its first forward pass.
struct Design {
  std::vector<Scene> scenes;  // the protocol's own first
  std::vector<Injection> injections;
  std::vector<std::string> warnings;
  std::string controls;  // the conversation of the control questions
  int64_t yes_id = 0, no_id = 0;
  Ids yes_variants, no_variants;  // those that are one token, the token itself first
  std::vector<std::unique_ptr<const ActiveReadout>> readouts;  // in the order of their fields
  Reads of_own, of_controls;
  graph::ModelPtr prefill_model;  // of Inject::model

  bool is_steered(const Injection& injection) const {
    return injection.strength != 0 && injection.factor != 0;
  }

  /// The blocks that an injection reaches, ascending.
  std::set<int64_t> injected_layers() const {
    std::set<int64_t> out;
    for (const auto& injection : injections)
      for (auto layer = injection.first_layer; layer <= injection.last_layer; ++layer) out.insert(layer);
    return out;
  }

  const Reads& reads(const Ask& ask) const { return ask.is_control() ? of_controls : of_own; }
};

/// The tokens of `scene.injected` that an injection reaches.
Ranges reached(const Scene& scene, const Injection& injection);

/// How many readings a run has, before anything is made of them. Throws as run_experiment does. The options are those of
/// with_defaults, and so for make_design.
double count_readings(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                      const ExperimentOptions& options);

/// Throws as run_experiment does.
Design make_design(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                   const ExperimentOptions& options);

}  // namespace introspect::experiments

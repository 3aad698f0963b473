#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "introspect/core/progress.h"
#include "introspect/experiments/protocol.h"
#include "introspect/experiments/result.h"
#include "introspect/experiments/store.h"
#include "introspect/export.h"
#include "introspect/models/model.h"
#include "introspect/steering/control_vector.h"

namespace introspect::experiments {

/// The blocks a vector is added to, both ends included.
struct LayerRange {
  double first = 0, last = 0;
  bool is_fraction = false;

  static LayerRange blocks(int64_t first, int64_t last) {
    return {static_cast<double>(first), static_cast<double>(last), false};
  }
  /// Fractions of the depth: a fraction f of L layers is block round(f L), at most L - 1. The article's blocks 21 to
  /// 42 of 64 are 0.33 to 0.66, which is 8 to 16 of 24.
  static LayerRange fractions(double first, double last) { return {first, last, true}; }

  /// Throws std::out_of_range for blocks the model does not have, fractions outside [0, 1] and ends in reverse.
  INTROSPECT_EXPORT std::pair<int64_t, int64_t> resolve(int64_t n_layers) const;
};

enum class StrengthUnit {
  absolute,  ///< what is added is strength * direction
  residual,  ///< what is added to block l has strength times the mean norm of the residual stream there
};

/// Throws std::invalid_argument that lists the names.
INTROSPECT_EXPORT StrengthUnit parse_strength_unit(const std::string& name);

struct ExperimentOptions {
  std::vector<double> strengths{20.0};
  std::vector<LayerRange> layers{LayerRange::fractions(0.33, 0.66)};
  /// Control questions. Default: the protocol's; empty: none.
  std::optional<std::vector<std::string>> questions;
  int64_t nulls = 0;  ///< random rotations of every vector, run in the same way
  StrengthUnit strength_unit = StrengthUnit::absolute;
  uint64_t seed = 0;  ///< of the rotations and of sampled text
  std::shared_ptr<Store> store;
  int64_t batch_bytes = int64_t{512} << 20;  ///< memory for injections that run side by side; one always runs
  Progress progress;  ///< counts readings; also called between layers, so that it can stop the run
};

/// Named control vectors; the names are the result's concepts.
using NamedVectors = std::vector<std::pair<std::string, steering::ControlVector>>;

/// Runs a protocol with every vector x strength x layer range, and the same with rotations of the vectors.
///
/// Each conversation is cut where the chat template ends its messages. What stands before the injected messages runs
/// once; the injected messages run once un-steered and once for each injection, with the vector added to the output of
/// every block of the range at each of their tokens (what the template writes around them included: its default system
/// message belongs to a first message). Then the steering is off, unless the protocol keeps it on, and each question runs
/// on a fork of that cache. Control questions that share turns with the protocol's own share its prefill; the steering
/// is always off in them. Every reading is from float32 logits over the whole vocabulary.
///
/// Strength 0 is the un-steered run itself. With StrengthUnit::residual directions count as unit vectors, and the norm
/// is the mean over the injected tokens of the un-steered run at that block, without the conversation's first token
/// (where models keep an activation hundreds of times the others'). A layer of the range without a direction is left
/// alone. Rotations are independent of one another and depend on the seed, the concept's name and their number.
///
/// Readings go to the store as they are made and are taken from there when model, tokens, directions and what is read
/// are the same. Throws before any forward pass: ConfigError for a protocol, template or tokenizer that does not fit and
/// for a range without any direction, ShapeError for a vector of another width or a conversation longer than n_ctx,
/// std::out_of_range for layers, std::invalid_argument for strengths that are not finite, no vectors, or counts below
/// their least. What the reader of the numbers should know is in Result::warnings.
INTROSPECT_EXPORT Result run_experiment(const models::Model& model, const Protocol& protocol,
                                        const NamedVectors& vectors, const ExperimentOptions& options = {});

}  // namespace introspect::experiments

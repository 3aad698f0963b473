#pragma once

#include <cstdint>
#include <optional>

#include "introspect/circuits/circuit.h"
#include "introspect/circuits/edge_attribution.h"
#include "introspect/export.h"

namespace introspect::circuits {

struct AcdcOptions : AblationOptions {
  double threshold = 0.01;  // tau, in the metric's unit
  bool ungrouped = false;
  std::optional<Circuit>
      start;  // only its edges are tried; all others are out from the beginning. None: every edge
  Progress progress;
};

struct Acdc {
  Circuit circuit;  // what stays; the score of an edge that was tried is how much the metric rose without it
  int64_t n_runs = 0;  // circuits that were run, those whose result was not needed included
  double metric = 0;   // the circuit's, mean over prompts
};

/// Automatic circuit discovery: edges are tried one by one, from the logits down, and one is taken out for good if the
/// metric, which is to stay low (a divergence from the clean run, a negated logit difference), then rises by less than the
/// threshold.
///
/// The order is that of falling receivers and, of each, falling senders; the result depends on it. Of runs only the layers
/// from the receiver's on are computed, and several edges are tried ahead at once, as if each went out: results are those
/// of trying one after another. Edges of a node that feeds nothing any more go without a run.
/// Throws as edge_attribution does; std::invalid_argument for a threshold that is not finite.
/// Source: Conmy et al. 2023, arXiv:2304.14997.
INTROSPECT_EXPORT Acdc acdc(const models::Model& model, const Prompts& prompts,
                            const AcdcOptions& options = {});

}  // namespace introspect::circuits

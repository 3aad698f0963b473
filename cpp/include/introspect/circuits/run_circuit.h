#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "introspect/circuits/circuit.h"
#include "introspect/circuits/edge_attribution.h"
#include "introspect/export.h"

namespace introspect::circuits {

struct RunCircuitOptions : AblationOptions {
  Progress progress;
};

/// The metric of runs in which every edge outside of a circuit carries its sender's alternative: float64 [circuits, prompts].
///
/// Exact, edge by edge: each receiver reads the stream of this run with the outputs of the senders that do not feed it
/// exchanged. Circuits are taken as they are, not pruned. Several run side by side.
/// Throws as edge_attribution does, and ConfigError for circuits of another model.
INTROSPECT_EXPORT torch::Tensor run_circuits(const models::Model& model, const Prompts& prompts,
                                             const std::vector<Circuit>& circuits,
                                             const RunCircuitOptions& options = {});

/// How much of the metric the best edges of a circuit's scores keep.
struct Faithfulness {
  std::vector<double> shares;        // k, of all edges
  std::vector<int64_t> n_edges;      // of them, once pruned
  std::vector<double> metric;        // mean over prompts
  std::vector<double> faithfulness;  // f(k) = (metric - empty) / (full - empty)
  double full = 0, empty = 0;        // the metric of all edges, and of none
  double cpr = 0;                    // integral of f over k, by trapezoids
  double cmd = 0;                    // integral of |1 - f|
};

struct FaithfulnessOptions : RunCircuitOptions {
  std::vector<double> shares = {.001, .002, .005, .01, .02, .05, .1, .2, .5, 1};

  /// True: edges of the largest |score|, as CMD wants them. False: edges whose replacement lowers the metric most, as CPR
  /// does (for metrics that are high where the model does the task).
  bool absolute = true;
};

/// The curve of a circuit's scores. Source: MIB, Mueller et al. 2025, arXiv:2504.13151.
///
/// Throws as run_circuits, and std::invalid_argument for shares that do not ascend from above 0 to at most 1, or where the
/// metric is the same with all edges and with none.
INTROSPECT_EXPORT Faithfulness faithfulness(const models::Model& model, const Prompts& prompts,
                                            const Circuit& circuit, const FaithfulnessOptions& options = {});

}  // namespace introspect::circuits

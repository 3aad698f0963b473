#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/patching.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/graph/graph.h"

namespace introspect::analysis {

struct AttributionPatchingOptions {
  /// "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "pattern_dest_src",
  /// "mlp_post".
  std::vector<std::string> points;

  /// Queries and keys through the softmax, computed anew, and linear from the pattern on: a saturated softmax has no gradient
  /// and yet moves when a query is replaced.
  bool correct_qk = false;

  /// The mean over layers of the absolute values without what flows back through that layer: effects that cancel show. One
  /// backward pass a layer, as far as below it.
  bool grad_drop = false;

  bool sum_positions = false;    ///< a node is a whole layer, head or neuron: positions are summed
  bool reference_is_to = false;  ///< divergences are from the patched run as it was, not from the other one
  int64_t memory_budget =
      int64_t{1} << 30;  ///< bytes of a batch of pairs with its graph of gradients, weights aside
  Progress progress;     ///< counts pairs
};

/// Estimates of what patching each node would add to the metric, float64 on the CPU.
struct AttributionPatching {
  struct AtPoint {
    std::string point;
    torch::Tensor values;           ///< [pairs, one dimension an axis]
    std::vector<std::string> axes;  ///< "layer", "position", "head", "neuron", "dest", "src"
  };
  std::vector<AtPoint> points;
  torch::Tensor to, from;  ///< [pairs]: metrics of both runs as they are
};

/// Attribution patching (AtP): (activation in `from` - activation in `to`) times the metric's gradient in `to`, summed over
/// the activation, for all nodes of all layers from one forward and one backward pass of `to` and one forward pass of `from`.
///
///     resid_pre, resid_mid, resid_post, attn_out, mlp_out   [pairs, layer, position]
///     z, q, k, v (k and v by group)                         [pairs, layer, position, head]
///     pattern [pairs, layer, head, dest]                    pattern_dest_src [pairs, layer, head, dest, src]
///     mlp_post                                              [pairs, layer, position, neuron]
///
/// With correct_qk and grad_drop it is AtP*. With grad_drop values are not negative.
///
/// Source: Nanda 2023, Attribution patching; Kramar et al. 2024, arXiv:2403.00745 (AtP*: section 3.1 and equation 11).
/// Throws HookError for points that the model does not have; std::invalid_argument for no pairs or points, an unknown
/// point, runs of a pair of different lengths or with interventions, pairs of different lengths with positions kept,
/// grad_drop in a model of one layer, or values that take more than most memory holds; and as reads_of does: all before
/// anything runs.
INTROSPECT_EXPORT AttributionPatching attribution_patching(const graph::ModelPtr& model,
                                                           const std::vector<PatchPair>& pairs,
                                                           const AttributionPatchingOptions& options);

}  // namespace introspect::analysis

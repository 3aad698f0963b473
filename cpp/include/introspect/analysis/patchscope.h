#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/graph/graph.h"

namespace introspect::analysis {

struct PatchscopeOptions {
  std::vector<int64_t> layers;                ///< whose output is taken from the source; empty: all
  std::vector<int64_t> source_positions{-1};  ///< negative ones count from the end
  int64_t target_position = -1;
  std::optional<int64_t> target_layer;  ///< whose output is replaced; none: the layer it is taken from
  int64_t read_position = -1;           ///< of the target: where the next token is predicted
  int64_t memory_budget = int64_t{512} << 20;
  Progress progress;  ///< counts tokens times layers
};

/// The residual of a source text put into a target text, and what the model then says next: log-probabilities [layers,
/// source positions, V], float32.
///
/// One segment of a graph for each layer and position: what the target texts have in common runs once, and no layer below
/// the one that is replaced again. After the last layer it is the logit lens of the source's residual at the target's
/// position. Source: Ghandeharioun et al. 2024, arXiv:2401.06102.
/// Throws std::out_of_range for layers and positions, and as graph::Graph::segment does.
INTROSPECT_EXPORT torch::Tensor patchscope(const graph::ModelPtr& model, const std::vector<int64_t>& source,
                                           const std::vector<int64_t>& target,
                                           const PatchscopeOptions& options = {});

}  // namespace introspect::analysis

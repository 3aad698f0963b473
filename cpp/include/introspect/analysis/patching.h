#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/metric.h"
#include "introspect/core/progress.h"
#include "introspect/engine/plan_summary.h"
#include "introspect/export.h"
#include "introspect/graph/graph.h"
#include "introspect/hooks/intervention.h"

namespace introspect::analysis {

/// A run of one prompt, under interventions or none.
struct Run {
  std::vector<int64_t> tokens;
  std::vector<hooks::Intervention> interventions;
};

/// Positions that are patched together: those of the run, and those of the other run that they are taken from.
struct Place {
  std::vector<int64_t> to, from;
};

/// The axes of a grid of patches at one point. Cells stand in the order layer, position, head, key; an axis that is not
/// iterated over is patched as a whole.
struct PatchAxes {
  hooks::Point point = hooks::Point::kResidPre;
  std::vector<int64_t> layers;  ///< empty: all
  std::vector<int64_t> heads;   ///< empty: all; groups at points of keys and values
  bool by_position = true;
  bool by_head = false;  ///< of points with heads
  bool by_key = false;   ///< of patterns: one weight, to a position from a key; it is not normalised again
  int64_t window =
      1;  ///< layers patched at once, [l - window / 2, l + window - window / 2) (Meng et al. 2022: 10)
};

/// Where what is patched in comes from.
enum class PatchWith : uint8_t {
  run,   ///< the same place of the other run
  zero,  ///< nothing
  mean,  ///< the mean of the other run over positions, or PatchOptions::mean
};

/// The patched run `to`, the run `from` that activations are taken of, and what is measured.
struct PatchPair {
  Run to, from;
  Metric metric;
  std::vector<Place> places;  ///< the position axis; empty: every position, of runs of one length
};

struct PatchOptions {
  PatchAxes axes;
  PatchWith with = PatchWith::run;
  torch::Tensor
      mean;  ///< of PatchWith::mean: [layers, ...] of a data set, as activations_at gives them for a token
  bool reference_is_to = false;  ///< divergences are from the patched run as it was, not from the other one
  int64_t memory_budget = int64_t{1} << 30;  ///< bytes of one pass, weights aside
  Progress progress;                         ///< counts cells
};

/// Metrics of a grid of patches: float64 on the CPU.
struct PatchGrid {
  torch::Tensor values;             ///< [pairs, one dimension an axis]
  std::vector<std::string> axes;    ///< "layer", "position", "head", "key"
  torch::Tensor to, from;           ///< [pairs]: of both runs as they are
  int64_t token_layers_asked = 0;   ///< tokens times layers of the cells run one by one
  int64_t token_layers_to_run = 0;  ///< that were run instead
};

/// Activations of runs at one point: [layers, T, ...] each, in float32 at least, on the CPU. Patterns are [layers, T, H, T].
///
/// What the runs begin with is run once, so that activations that are equal in two runs are so bit for bit.
/// layers empty: all. Throws as Graph::segment and Graph::read do.
INTROSPECT_EXPORT std::vector<torch::Tensor> activations_at(const graph::ModelPtr& model,
                                                            const std::vector<Run>& runs, hooks::Point point,
                                                            const std::vector<int64_t>& layers = {});

/// The interventions of each cell: `from` [layers, T', ...] replaces `to` [layers, T, ...] (both of all layers). A cell that
/// would put in what is there already has none.
///
/// Throws std::invalid_argument for axes that the point does not have, std::out_of_range for layers, heads and positions,
/// ShapeError for activations of other shapes.
INTROSPECT_EXPORT std::vector<std::vector<hooks::Intervention>> patch_cells(const PatchAxes& axes,
                                                                            const std::vector<Place>& places,
                                                                            const torch::Tensor& to,
                                                                            const torch::Tensor& from);

/// What is done with cells as they come: their numbers, and the residual after the last block [cells, P, D].
using OnCells = std::function<void(const std::vector<int64_t>& cells, const torch::Tensor& resid_NPD)>;

/// Runs `run` under the interventions of each cell besides its own, and hands out the last residual at `positions`.
///
/// One graph, so that only what a cell can change is run. Returns what that cost. Throws as Graph::segment does.
INTROSPECT_EXPORT engine::PlanSummary run_cells(const graph::ModelPtr& model, const Run& run,
                                                const std::vector<std::vector<hooks::Intervention>>& cells,
                                                const std::vector<int64_t>& positions, int64_t memory_budget,
                                                const Progress& progress, const OnCells& on_cells);

/// The metric of every cell of a grid, for every pair.
///
/// Source: Zhang & Nanda 2024, arXiv:2309.16042 (what is patched with what); Wang et al. 2023 (paths of heads).
/// Throws std::invalid_argument for no pairs, runs of different lengths without places, or pairs with different numbers of
/// places, and as reads_of, activations_at and patch_cells do: all before the first cell runs.
INTROSPECT_EXPORT PatchGrid patch_grid(const graph::ModelPtr& model, const std::vector<PatchPair>& pairs,
                                       const PatchOptions& options = {});

}  // namespace introspect::analysis

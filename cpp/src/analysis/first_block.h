#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "introspect/hooks/intervention.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

/// Cells of a run, each a list of interventions, of which the first block that they change has been run.
struct AfterFirstBlock {
  std::vector<std::vector<hooks::Intervention>>
      cells;                 ///< residuals after that block, and what is changed above it
  int64_t token_layers = 0;  ///< tokens times layers that were run
};

/// Runs the first block that each cell changes, many cells at a time.
///
/// A graph runs a block that is changed inside (at its queries, say) for every cell by itself, and blocks of changed
/// residuals together. resid_pre_LTD: the residual before each block of the run without interventions. Each cell
/// has an intervention, and those in its first block are inside it.
AfterFirstBlock run_first_blocks(const models::Model& model, const torch::Tensor& resid_pre_LTD,
                                 const std::vector<std::vector<hooks::Intervention>>& cells,
                                 int64_t memory_budget);

}  // namespace introspect::analysis

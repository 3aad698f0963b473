#pragma once

#include <vector>

#include <torch/types.h>

#include "introspect/experiments/result.h"
#include "introspect/models/model.h"

#include "experiments/plan.h"

namespace introspect::experiments {

/// What a graph read for one reading.
struct ReadRow {
  const Ask* ask = nullptr;
  torch::Tensor resid_LD;      ///< after every block, or after the last one alone: [1, D]
  torch::Tensor attention_LH;  ///< undefined unless wanted
  std::vector<torch::Tensor>
      continuations;     ///< [T, D] of each: residuals after all of its tokens but the last
  torch::Tensor base_D;  ///< of the unsteered run, where a reading is compared with it
};

/// Reads residuals in float32 over the whole vocabulary, as many at once as leaves logits within some tens of MiB.
std::vector<Reading> read_out(const models::Model& model, const Plan& plan, const std::vector<ReadRow>& rows);

}  // namespace introspect::experiments

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/cache/kv_cache.h"
#include "introspect/models/model.h"

#include "experiments/plan.h"

namespace introspect::experiments {

/// A sequence that is to be continued, and what stays on meanwhile.
struct Prompt {
  cache::KVCache cache;
  torch::Tensor resid_D;  ///< behind the last block, at its last position
  Ids tokens;             ///< of the whole sequence
  Directions added;       ///< to the outputs of blocks, at every new token
  uint64_t seed = 0;      ///< of its own draws
};

/// What the model goes on with after each prompt. Prompts of one length run side by side, as many as the bytes of their
/// caches allow (one at least).
std::vector<std::string> continue_all(const models::Model& model, std::vector<Prompt> prompts,
                                      const Sampling& sampling, int64_t memory_budget);

}  // namespace introspect::experiments

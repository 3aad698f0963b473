#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/cache/kv_cache.h"
#include "introspect/models/model.h"

#include "experiments/design.h"

namespace introspect::experiments {

/// A sequence that is to be continued, and what stays on meanwhile.
struct Prompt {
  cache::KVCache cache;
  torch::Tensor resid_D;  ///< after the last block, at its last position
  Ids tokens;             ///< of the whole sequence
  Directions added;       ///< to the outputs of blocks, at every new token
  uint64_t seed = 0;      ///< of its own draws
};

constexpr int64_t kMostRows = 32;  ///< texts side by side: beyond it a step gets no cheaper

/// The tokens that the model goes on with after each prompt, side by side. Shorter prompts are padded on the left.
std::vector<Ids> continue_batch(const models::Model& model, const std::vector<Prompt*>& prompts,
                                const Sampling& sampling);

/// Takes the texts of some prompts, whose places are given.
using OnTexts = std::function<void(const std::vector<size_t>&, std::vector<std::string>)>;

/// What the model goes on with after each prompt, handed out batch by batch. Prompts of one length run side by side, as
/// many as the bytes of their caches allow (one at least).
void continue_all(const models::Model& model, std::vector<Prompt> prompts, const Sampling& sampling,
                  int64_t memory_budget, const OnTexts& on_texts);

}  // namespace introspect::experiments

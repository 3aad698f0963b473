#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::sae {

/// Tokens that a model is run on, row by row: the first lengths_N of each, what follows is padding.
///
/// Special tokens are run, for those after them see them, and not read: they count in no figure and no feature is said to
/// be active there. (Most residual streams have a massive activation at the first one.)
struct Contexts {
  torch::Tensor tokens_NT;              ///< int64 [N, T]
  torch::Tensor lengths_N;              ///< int64 [N], from 1 to T; undefined: T
  std::vector<int64_t> special_tokens;  ///< ids
};

/// What stands at hook points (full names, heads one after another) over contexts, side by side: [N, T, width] in the
/// model's dtype, on the CPU, 0 at padding. No block above the highest point is run.
///
/// Throws before the first pass HookError for a point that the model does not have, ConfigError for one after the last
/// block or without a width, ShapeError for contexts that are longer than n_ctx, std::out_of_range for token ids.
INTROSPECT_EXPORT torch::Tensor read_contexts(const models::Model& model,
                                              const std::vector<std::string>& hook_names,
                                              const Contexts& contexts, int64_t batch_tokens = 4096,
                                              const Progress& progress = {});

}  // namespace introspect::sae

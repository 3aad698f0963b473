#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::models {

/// Whether the largest of the logits [..., V] of every row is a number: false for NaN and infinity, true where some are
/// minus infinity, as those of forbidden tokens. One reduction over them.
INTROSPECT_EXPORT bool are_finite(const torch::Tensor& logits);

/// The first block after which the residual is not finite, by what a pass has left in its cache; -1: the embedding,
/// n_layers - 1 also where nothing before the last block's end shows it.
INTROSPECT_EXPORT int64_t first_not_finite(const Model& model, const cache::KVCache& cache);

/// The same by passes over tokens int64 [B, T] with the options of the pass that went wrong, which must have no cache.
INTROSPECT_EXPORT int64_t first_not_finite(const Model& model, const torch::Tensor& tokens_BT,
                                           const ForwardOptions& options = {});

/// Throws Error unless the logits are finite: it says where they stopped being so (`first_block` is asked only then) and
/// what to do. `who` begins the message. Model::forward returns what is not finite; whatever samples from logits or
/// keeps what it reads calls this first.
INTROSPECT_EXPORT void check_finite(std::string_view who, const Model& model, const torch::Tensor& logits,
                                    const std::function<int64_t()>& first_block);

}  // namespace introspect::models

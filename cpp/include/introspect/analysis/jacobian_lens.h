#pragma once

#include <cstdint>
#include <vector>

#include "introspect/analysis/lens.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

struct JacobianLensOptions {
  std::vector<int64_t> layers;  ///< 0 to n_layers - 2; empty: all of these
  int64_t skip_first = 16;  ///< positions that are left out, as is the last one: attention sinks lie there
  int64_t context = 128;    ///< tokens of a prompt that are used
  int64_t directions = 8;   ///< of the last residual, whose gradients are worked out side by side
  Progress progress;        ///< counts directions of all prompts
};

/// J of each layer l, [D, D]: the mean over prompts and positions t of the sum over t' >= t of d h_last,t' / d h_l,t, t and
/// t' among the positions that are not left out; h_l is the output of block l, h_last that of the last one.
///
/// One forward pass a prompt and D / directions backward ones through all layers at once: a prompt of T tokens costs about
/// 2 D forward passes. Source: Gurnee et al. 2026, transformer-circuits.pub/2026/workspace.
/// Throws std::invalid_argument for no prompts or ones that leave no position, or options out of range,
/// std::out_of_range for tokens and layers, ConfigError for a model whose blocks stay in its files.
INTROSPECT_EXPORT Lens jacobian_lens(const models::Model& model,
                                     const std::vector<std::vector<int64_t>>& prompts,
                                     const JacobianLensOptions& options = {});

}  // namespace introspect::analysis

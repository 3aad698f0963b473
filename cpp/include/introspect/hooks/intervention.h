#pragma once

#include <cstdint>
#include <limits>
#include <map>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/hook_point.h"

namespace introspect::hooks {

/// A change to activations, as data: `strength * directions[layer]` is added at `point` of each of the layers.
///
/// It says nothing of the model it is used on, so it can be stored, hashed and applied without Python. A strength
/// of zero, or a span that the pass does not touch, leaves the pass as it was, bit for bit.
struct Intervention {
  Point point = Point::kResidPost;

  /// Layer -> [D], the same for all rows of the batch, or [B, D], one direction a row.
  std::map<int64_t, torch::Tensor> directions;

  double strength = 1.0;

  /// Positions [first, last) of the sequence that are changed, counted from the start of the KV cache and, in a
  /// padded batch, with the padding. The defaults are every position, generated ones too.
  int64_t first_position = 0;
  int64_t last_position = std::numeric_limits<int64_t>::max();
};

/// `x` [B, T, D], whose first position is number `offset` of its sequence, with the intervention's direction for
/// `layer` added; `x` itself where nothing is to be changed.
///
/// Throws ShapeError if the direction is neither [D] nor [B, D].
INTROSPECT_EXPORT torch::Tensor apply(const Intervention& intervention, int64_t layer,
                                      const torch::Tensor& x_BTD, int64_t offset);

/// Throws std::out_of_range for a layer that the model does not have, ShapeError for a direction that is not
/// [d_model] or [B, d_model], and std::invalid_argument for a strength or direction that is not finite.
INTROSPECT_EXPORT void validate(const Intervention& intervention, int64_t n_layers, int64_t d_model);

}  // namespace introspect::hooks

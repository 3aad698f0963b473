#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::steering {

/// How much of a direction there is in an activation h.
enum class Measure : uint8_t {
  kCosine,      // of h and c
  kProjection,  // h.c / |c|, in units of the residual stream
  kCast,        // cosine of h and tanh(c (c.h) / (c.c)), as Lee et al. compute it: never negative
};

/// Decides, for each prompt, whether to steer: by how much of a direction the unsteered residual stream holds.
///
/// Source: conditional activation steering (CAST), Lee et al. 2024, arXiv:2409.05907, whose condition is Measure::kCast
/// over the mean of the prompt.
struct Condition {
  int64_t layer = 0;        // read at the output of this block
  torch::Tensor direction;  // [D]
  double threshold = 0;
  bool above = true;  // holds above the threshold; else below it
  Measure measure = Measure::kCosine;
  bool last_position =
      false;  // read at the last token of the prompt; else at the mean over all of its tokens
};

/// "cosine", "projection" and "cast". Throws std::invalid_argument for any other.
INTROSPECT_EXPORT Measure parse_measure(std::string_view name);

/// How much of the condition's direction there is in each prompt: float64 [B]. Only blocks up to the layer are run.
///
/// tokens_BT: int64; mask_BT: bool, false for padding at either side; undefined: none.
/// Throws std::out_of_range for a layer that the model does not have, ShapeError for a direction that is not float [D],
/// std::invalid_argument for one that is zero or not finite or a threshold that is NaN, and as Model::forward does.
INTROSPECT_EXPORT torch::Tensor measure(const models::Model& model, const Condition& condition,
                                        const torch::Tensor& tokens_BT, const torch::Tensor& mask_BT = {});

/// The rows of the batch in which the condition holds. Throws as `measure` does.
INTROSPECT_EXPORT std::vector<int64_t> rows_where(const models::Model& model, const Condition& condition,
                                                  const torch::Tensor& tokens_BT,
                                                  const torch::Tensor& mask_BT = {});

/// Throws what makes a condition unfit for a model, as `measure` does.
INTROSPECT_EXPORT void validate(const Condition& condition, const models::Model& model);

}  // namespace introspect::steering

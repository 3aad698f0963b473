#pragma once

#include <memory>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::models {

/// The model with weights that cannot write a direction [D]: equal to a pass in which everything that is
/// written to the residual stream loses its part along it (analysis::ablation_everywhere).
///
/// Embeddings, positions, W_O, W_out and their biases lose their part along it; the unembedding keeps it, also where it
/// was the embedding. Computed in float64 and rounded to the model's dtype.
/// Throws ConfigError for families that norm what a block writes (Gemma 2 and 3): no weight can do it there; ShapeError
/// or std::invalid_argument for a direction that is none.
INTROSPECT_EXPORT std::shared_ptr<const Model> orthogonalised(const Model& model,
                                                              const torch::Tensor& direction_D);

}  // namespace introspect::models

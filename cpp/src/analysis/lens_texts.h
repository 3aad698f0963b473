#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "introspect/models/model.h"

namespace introspect::analysis {

/// Texts as pieces of at most `context` tokens, and no more than fit the model. Throws std::invalid_argument and std::out_of_range, naming `who`.
std::vector<std::vector<int64_t>> pieces_of(const models::Model& model,
                                            const std::vector<std::vector<int64_t>>& texts, int64_t context,
                                            const char* who);

/// Consecutive pieces together, as long as they have no more than `most` tokens; a longer one is alone.
std::vector<std::vector<std::vector<int64_t>>> groups_of(std::vector<std::vector<int64_t>> pieces,
                                                         int64_t most);

/// The residual stream before each block and after the last one, [T, D] each, of the tokens of some pieces one after
/// another. Pieces do not see one another: they run side by side in one pass.
std::vector<torch::Tensor> residual_streams(const models::Model& model,
                                            const std::vector<std::vector<int64_t>>& pieces);

/// Float32, or float64 of a float64 model.
inline torch::ScalarType lens_dtype(const models::Model& model) {
  return model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}

}  // namespace introspect::analysis

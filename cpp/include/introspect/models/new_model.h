#pragma once

#include <memory>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::models {

/// A model that nothing has been trained into: matrices and biases are zero, the weights of norms one.
///
/// with_weights puts others in their place. It has no tokenizer.
/// Throws ConfigError for a config that validate refuses, and for another dtype than the four that models run in.
INTROSPECT_EXPORT std::shared_ptr<const Model> new_model(const Config& cfg,
                                                         torch::ScalarType dtype = torch::kFloat32,
                                                         torch::Device device = torch::kCPU);

}  // namespace introspect::models

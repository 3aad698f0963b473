#pragma once

#include <memory>

#include "introspect/io/tensor_source.h"
#include "introspect/models/model.h"
#include "models/architecture.h"

namespace introspect::models {

/// Reads the tensors of a checkpoint into the form in which the layers use them, in options.dtype on options.device.
///
/// Where options.keep_blocks is false, or left out and the model would take more than there is room for, the source is
/// kept, and blocks are read from it later.
/// Throws ConfigError for a tensor that is missing or stored in a form that cannot be read, ShapeError for one whose
/// shape contradicts the config.
Weights read_weights(std::shared_ptr<const io::TensorSource> source, const Architecture& architecture,
                     const LoadOptions& options);

/// What stands before the names of `map` in this checkpoint.
std::string name_prefix(const io::TensorSource& source, const WeightMap& map);

/// The name of the unembedding's tensor in this checkpoint; empty if it is tied to the embedding.
std::string unembed_name(const io::TensorSource& source, const WeightMap& map);

}  // namespace introspect::models

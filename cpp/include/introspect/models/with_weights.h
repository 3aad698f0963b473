#pragma once

#include <map>
#include <memory>
#include <string>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::models {

/// A model in which some weights are others; `model` stays as it is, and what is not given is shared with it.
///
/// `weights` has the names, shapes, dtypes and devices of Model::named_weights. The tensors are used as they are and
/// not copied, so that copies which require gradients can be trained in place. An embedding that is also the
/// unembedding stays both. The hash is another one, of the model's and of every byte given: a model trained in place
/// wants a new one when its training ends. Without weights it is the model's own.
/// Throws std::invalid_argument for a name the model does not have, ShapeError for a tensor that is not as the one it
/// replaces, or not contiguous.
INTROSPECT_EXPORT std::shared_ptr<const Model> with_weights(
    const Model& model, const std::map<std::string, torch::Tensor>& weights);

}  // namespace introspect::models

#include "introspect/models/whole_weights.h"

#include "introspect/core/check.h"

namespace introspect::models {

const Weights& whole_weights(const Model& model, std::string_view who) {
  check<ConfigError>(
      model.keeps_blocks(), who, ": model '", model.cfg().model_name,
      "': its blocks stay in the files; to get at their weights, load it with keep_blocks=True");
  return model.weights();
}

}  // namespace introspect::models

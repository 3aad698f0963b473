#pragma once

#include <map>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/intervention.h"
#include "introspect/models/model.h"

namespace introspect::models {

/// Puts what interventions hold on the devices of the layers at which they act, each tensor once for each device; a pass
/// would copy it at every layer and step. On the CPU nothing is copied.
class INTROSPECT_EXPORT OperandPlacer {
 public:
  explicit OperandPlacer(const Model& model) : model_(model) {}

  hooks::Intervention operator()(hooks::Intervention intervention);

 private:
  torch::Tensor placed(const torch::Tensor& tensor, torch::Device device);

  const Model& model_;
  std::map<const void*, std::vector<torch::Tensor>>
      placed_;  // a tensor, which so stays alive, and its copies
};

}  // namespace introspect::models

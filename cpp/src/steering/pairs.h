#pragma once

#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/steering/diagnostics.h"
#include "introspect/steering/directions.h"

namespace introspect::steering {

/// Activations of pairs as directions and diagnostics both need them: float64 on the CPU, finite.
struct Pairs {
  torch::Tensor positive_ND, negative_ND;
  torch::Tensor difference_ND;
  double sum_of_squares;  // of the differences

  int64_t size() const { return difference_ND.size(0); }
};

/// Throws what direction_of_pairs documents, `who` being whose arguments they are.
Pairs checked_pairs(const std::string& who, const torch::Tensor& positive_ND,
                    const torch::Tensor& negative_ND);

/// float64 [D], not yet rounded. `near_D`: the direction of pairs much like these, from which a component is found sooner
/// and to 1e-7 only; undefined: none is known.
torch::Tensor direction_of(const Pairs& pairs, Method method, uint64_t seed, std::vector<double>* shares,
                           const torch::Tensor& near_D = {});

LayerDiagnostics diagnose(const Pairs& pairs, const torch::Tensor& direction_D, Method method, int64_t folds,
                          uint64_t seed);

}  // namespace introspect::steering

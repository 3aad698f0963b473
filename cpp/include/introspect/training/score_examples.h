#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"
#include "introspect/training/lora_trainer.h"

namespace introspect::training {

/// How a model answers examples.
struct ExampleScores {
  torch::Tensor losses;  ///< [n] float64: mean cross-entropy of each example's target tokens, in nats
  torch::Tensor greedy;  ///< [n] bool: greedy decoding after the prompt gives the target
};

/// Examples as one token tree, in which equal beginnings with equal injections run once; memory_budget is of activations.
///
/// Throws as LoraTrainer's constructor does, and Error for logits that are not finite.
INTROSPECT_EXPORT ExampleScores score_examples(const models::Model& model,
                                               const std::vector<LoraExample>& examples,
                                               int64_t memory_budget = int64_t{1} << 30,
                                               const Progress& progress = {});

}  // namespace introspect::training

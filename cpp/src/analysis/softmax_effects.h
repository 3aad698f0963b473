#pragma once

#include <cstdint>
#include <memory>

#include <torch/types.h>

#include "introspect/models/model.h"

// What a softmax does when one of its queries or keys is another one, to first order in what follows the pattern.
// Source: Kramar et al. 2024, arXiv:2403.00745, section 3.1.1.

namespace introspect::analysis {

/// Queries [B, T, H, K] and keys [B, T, G, K] that scores are made of, in two runs of an attention layer.
struct SoftmaxInputs {
  std::shared_ptr<const nn::Block> block;
  int64_t window;  ///< keys that a query sees, its own included; 0: all
  torch::Tensor q_to, q_from, k_to, k_from;

  const nn::Attention& attention() const { return block->parts().attn; }
};

/// Of every query: its new row of the pattern less the old one, times the gradient of the metric there [B, H, T, S].
/// Returns float64 [B, T, H].
torch::Tensor query_effects(const SoftmaxInputs& inputs, const torch::Tensor& gradient_BHTS);

/// Of every key, or group's key: the same over all rows that it stands in, in the same order of work as one pattern.
/// Returns float64 [B, T, G].
///
/// With one score of a row replaced by s', the weight of its key is sigmoid(s' - log of the sum of the other exps), and
/// the others keep their proportions. Algebraically this is the O(T^2) formula of the paper; no exponential overflows.
torch::Tensor key_effects(const SoftmaxInputs& inputs, const torch::Tensor& gradient_BHTS);

}  // namespace introspect::analysis

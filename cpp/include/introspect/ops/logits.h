#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// Log-odds of one set of tokens against another: log(sum of exp(logit) over `yes`) - the same over `no`, in nats.
///
/// logits [..., V], of any shift: the normaliser cancels. Returns float64 [...] on the CPU.
/// Throws std::invalid_argument for an empty set, std::out_of_range for ids outside the vocabulary.
INTROSPECT_EXPORT torch::Tensor set_log_odds(const torch::Tensor& logits, const std::vector<int64_t>& yes,
                                             const std::vector<int64_t>& no);

/// Entropy of the next token, -sum p log p (0 log 0 is 0), in nats. logits [..., V] -> float64 [...] on the CPU.
INTROSPECT_EXPORT torch::Tensor entropy(const torch::Tensor& logits);

/// log(sum exp(logits)), in nats: exponentials in the logits' precision, float32 at least, their sum in float64.
/// logits [..., V] -> float64 [...] on the CPU.
INTROSPECT_EXPORT torch::Tensor log_total(const torch::Tensor& logits);

/// KL(p || base), sum p (log p - log base), in nats: of float64 logits in float64, of others within 1e-6 of it.
///
/// logits and base_logits [..., V] -> float64 [...] on the CPU. base_log_total: log_total(base_logits) where it is known
/// (many are compared with one). Throws ShapeError for logits of different shapes.
INTROSPECT_EXPORT torch::Tensor kl_divergence(const torch::Tensor& logits, const torch::Tensor& base_logits,
                                              const torch::Tensor& base_log_total = {});

/// The k tokens whose log-probability rose most (or fell most), most changed first.
///
/// logits and base_logits [V] -> changes float64 [k] in nats and ids int64 [k], on the CPU. k is at most V.
/// Throws ShapeError as kl_divergence does.
INTROSPECT_EXPORT std::pair<torch::Tensor, torch::Tensor> most_changed(const torch::Tensor& logits,
                                                                       const torch::Tensor& base_logits,
                                                                       int64_t k, bool raised);

}  // namespace introspect::ops

#pragma once

#include <torch/types.h>

#include "circuits/decoder.h"

namespace introspect::circuits {

/// Runs of a batch of prompts in which single edges are replaced, exactly: a receiver reads the stream with the outputs of
/// some senders exchanged for their alternatives. Several circuits run side by side.
class MaskedRun {
 public:
  /// Of runs that are the clean one below first_layer: x is the stream before it, and alternative and clean hold what
  /// every sender writes, [senders, B, T, D] (the alternative may broadcast).
  MaskedRun(const Decoder& decoder, int64_t first_layer, const torch::Tensor& x_BTD,
            const torch::Tensor& clean_UBTD, const torch::Tensor& alternative);

  /// The last streams [C, B, T, D] of circuits whose edges are bool [C, senders, receivers].
  torch::Tensor run(const torch::Tensor& in_CUV) const;

  /// Bytes that one circuit takes.
  int64_t bytes() const;

 private:
  const Decoder& decoder_;
  int64_t first_layer_, n_shared_;  // senders below it
  torch::Tensor x_BTD_, alternative_;
  torch::Tensor shared_;  // alternative - clean of those, [n_shared, B * T * D]
};

}  // namespace introspect::circuits

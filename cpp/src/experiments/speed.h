#pragma once

#include <cstdint>

#include "introspect/graph/graph.h"

namespace introspect::experiments {

/// How fast a model runs on this machine, in seconds.
struct Speed {
  double token_layer = 0;  // one token through one block, among many
  double pass = 0;         // of a pass of the graph whatever it holds: weights that are read from their file
  double logits = 0;       // of one position

  /// Token-layers of a pass of so many seconds; of a longer one where most of it would be its beginning.
  int64_t pass_token_layers(double seconds) const;
  /// `count` times the logits, as token-layers that take as long.
  int64_t as_token_layers(double count) const;
  /// Texts of `new_tokens` tokens after `n` prompts.
  double sampling(int64_t n, int64_t new_tokens, int64_t n_layers) const;
  void scale(double factor);
};

/// Times some tokens in the first blocks, which takes some tenths of a second; what was measured in the last minute counts.
Speed measure_speed(const graph::ModelPtr& model);

}  // namespace introspect::experiments

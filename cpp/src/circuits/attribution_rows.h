#pragma once

#include <vector>

#include <torch/types.h>

#include "circuits/feature_layers.h"
#include "circuits/frozen_model.h"

namespace introspect::circuits {

/// What a row explains: a vector that is dotted with the stream at one position.
struct RowTarget {
  enum class Reads : uint8_t { stream_after, mlp_input };
  Reads reads = Reads::mlp_input;
  int64_t layer = 0;  ///< of the block that it reads in, or after
  int64_t position = 0;
  torch::Tensor direction_D;
  double constant = 0;  ///< what it is where the stream is 0: counted for the layer's bias
};

/// Rows of targets over all active features: what each adds to each target.
struct Rows {
  torch::Tensor features_RN;  ///< every active feature, layer by layer and position by position
  torch::Tensor errors_RE;    ///< E = layers x positions
  torch::Tensor tokens_RT;
  torch::Tensor biases_RB;  ///< B = 1 + layers: position embeddings first
};

/// The adjoint of the frozen model with transcoders, applied to many targets at once.
class RowMaker {
 public:
  RowMaker(const FrozenModel& frozen, const FeatureLayers& features);

  int64_t n_features() const { return offsets_.back(); }

  /// The first column of each feature layer; and of active feature `column`, its place.
  struct Place {
    int64_t layer_index, position, feature;
    double activation;
  };
  Place place(int64_t column) const;
  /// (layer, position) of each column as layer * positions + position, int64 [N].
  const torch::Tensor& cells() const { return cells_; }

  /// Bytes that rows take beside their result, a row.
  int64_t row_bytes(int64_t n_positions) const;

  /// Targets must stand by falling depth (layer, then stream_after before mlp_input).
  Rows rows(const std::vector<RowTarget>& targets) const;

 private:
  const FrozenModel& frozen_;
  const FeatureLayers& features_;
  std::vector<int64_t> offsets_;  ///< of the first column of each feature layer, and the number of columns
  std::vector<torch::Tensor> bounds_;  ///< offsets of positions within it, on the CPU
  torch::Tensor cells_;
};

}  // namespace introspect::circuits

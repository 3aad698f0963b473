#pragma once

#include <vector>

#include <torch/types.h>

#include "circuits/feature_layers.h"
#include "circuits/frozen_model.h"

namespace introspect::circuits {

/// What a row explains: a vector that is dotted with the stream at one position.
struct RowTarget {
  enum class Reads : uint8_t {
    attention_out,  ///< what attention adds
    mlp_input,
    residual,      ///< the stream after the block, as an SAE of it reads it
    stream_after,  ///< the same above such an SAE
  };
  Reads reads = Reads::mlp_input;
  int64_t layer = 0;  ///< of the block that it reads in, or after
  int64_t position = 0;
  torch::Tensor direction_D;
  double constant = 0;  ///< what it is where the stream is 0: counted for the layer's bias

  int64_t depth() const { return 4 * layer + static_cast<int64_t>(reads); }
};

/// What the encoders of a site read.
RowTarget::Reads reads_of(FeatureSite site);

/// Rows of targets over all active features: what each adds to each target.
struct Rows {
  /// Every active feature, layer by layer and position by position. It stands in memory that the next rows take, and is
  /// set only where a target can see: below its layer, and up to its position.
  torch::Tensor features_RN;
  torch::Tensor errors_RE;  ///< E = rows of errors x positions
  torch::Tensor tokens_RT;
  torch::Tensor biases_RB;      ///< B = 1 + layers: position embeddings first
  torch::Tensor injections_RL;  ///< what is injected after each layer
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
  int64_t position(int64_t column) const;
  /// The error's row and the position of a column as row * positions + position.
  int64_t cell(int64_t column) const;

  /// Bytes that rows take beside their result, a row.
  int64_t row_bytes(int64_t n_positions) const;

  /// Targets must stand by falling depth.
  Rows rows(const std::vector<RowTarget>& targets);

  /// What a target sees of the columns: [first, end) of each cell, layer by layer; all else of its row is 0.
  struct Cell {
    int64_t number, first, end;  ///< number: as of cell()
  };
  std::vector<Cell> seen(const RowTarget& target) const;

 private:
  size_t layer_index(int64_t column) const;
  int64_t position_within(size_t layer_index, int64_t column) const;

  /// What the features of layer `index` at a position write by its `write`th way, [m, D].
  torch::Tensor written_mD(size_t index, size_t write, int64_t position) const;

  const FrozenModel& frozen_;
  const FeatureLayers& features_;
  torch::Tensor buffer_;          ///< of features_RN
  bool writes_once_ = true;       ///< no feature writes to two layers
  std::vector<int64_t> offsets_;  ///< of the first column of each feature layer, and the number of columns
  std::vector<torch::Tensor> bounds_;  ///< offsets of positions within it, on the CPU
};

}  // namespace introspect::circuits

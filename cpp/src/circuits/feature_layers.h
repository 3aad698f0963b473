#pragma once

#include <utility>
#include <vector>

#include <torch/types.h>

#include "circuits/frozen_model.h"
#include "introspect/circuits/attribute.h"

namespace introspect::circuits {

/// The features that read one layer, in the form that graphs take: a target's pre-activation is W_enc_i x + const_i, and a
/// source adds activation W_dec_i to the stream after each layer it writes.
struct FeatureLayer {
  int64_t layer = 0;
  torch::Tensor W_enc_FD, constant_F;

  /// Entries [offsets_T[t], offsets_T[t + 1]) are the active features at position t.
  torch::Tensor offsets, ids, activations;                ///< int64 [T + 1], int64 [n], [n]
  std::vector<std::pair<int64_t, torch::Tensor>> writes;  ///< (layer, W_dec [F, D]), ascending
};

/// What transcoders make of a prompt.
struct FeatureLayers {
  std::vector<FeatureLayer> layers;  ///< ascending
  TranscoderInput input = TranscoderInput::residual;

  /// By layer of the model: what the features write together and what they leave out of the MLP's output, what is written
  /// whatever is read, and the skip [D_out, D_in]. Undefined where a layer has no transcoder: all of it is then error.
  std::vector<torch::Tensor> error_TD, bias_D, skip_DD;
};

/// Throws ConfigError for transcoders that do not fit the model or are not linear where they are active.
FeatureLayers read_features(const FrozenModel& frozen, const Transcoders& transcoders, bool mask_first);

}  // namespace introspect::circuits

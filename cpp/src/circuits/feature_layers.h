#pragma once

#include <utility>
#include <vector>

#include <torch/types.h>

#include "circuits/frozen_model.h"
#include "introspect/circuits/attribute.h"

namespace introspect::circuits {

/// The features that read one layer at a site, in the form that graphs take: a target's pre-activation is W_enc_i x + const_i, and a
/// source adds activation W_dec_i to the stream after each layer it writes.
struct FeatureLayer {
  int64_t layer = 0;
  FeatureSite site = FeatureSite::mlp;
  int64_t error_row = 0;  ///< of what they leave out, among all rows of errors
  torch::Tensor W_enc_FD, constant_F;

  /// Entries [offsets_T[t], offsets_T[t + 1]) are the active features at position t.
  torch::Tensor offsets, ids, activations;                ///< int64 [T + 1], int64 [n], [n]
  std::vector<std::pair<int64_t, torch::Tensor>> writes;  ///< (layer, W_dec [F, D]), ascending, at their site
};

/// A vector of the model that an SAE stands in for.
struct Split {
  int64_t layer = 0;
  FeatureSite site = FeatureSite::residual;
  torch::Tensor error_TD, bias_D;  ///< undefined for no constant
};

/// What dictionaries make of a prompt.
struct FeatureLayers {
  std::vector<FeatureLayer> layers;  ///< by depth: layer, then attention, MLP, stream
  std::vector<Split> splits;         ///< by depth
  TranscoderInput input = TranscoderInput::residual;

  /// By layer of the model: what the features write together and what they leave out of the MLP's output, what is written
  /// whatever is read, and the skip [D_out, D_in]. Undefined where a layer has no transcoder: all of it is then error.
  std::vector<torch::Tensor> error_TD, bias_D, skip_DD;

  const Split* split(FeatureSite site, int64_t layer) const;
  /// Errors of every MLP, then of every split.
  int64_t n_error_rows() const { return static_cast<int64_t>(error_TD.size() + splits.size()); }
};

/// Throws ConfigError for dictionaries that do not fit the model or are not linear where they are active. `transcoders` may be
/// of SAEs alone, or, if `may_be_none`, empty.
FeatureLayers read_features(const FrozenModel& frozen, const Transcoders& transcoders, bool mask_first,
                            bool may_be_none = false);

}  // namespace introspect::circuits

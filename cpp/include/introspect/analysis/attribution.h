#pragma once

#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/residual_stream.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

/// Into what parts a logit is taken apart.
enum class Unit {
  kLayer,      // the embeddings and each block: "3_block"
  kComponent,  // attention and MLP of each block apart: "3_attn_out", "3_mlp_out"
  kHead,       // each head and each MLP; b_O of all layers is one row, "bias"
  kNeuron,     // each head and each neuron; b_O and b_out of all layers are one row, "bias"
};

/// What each part of a model adds to logits, or to differences of logits.
struct Attribution {
  std::vector<std::string>
      labels;            // "embed", "3_attn_out", "L3H7", "L3N100", "bias", "ln_final.b", "b_U", ...
  torch::Tensor values;  // [parts, B, n], float32 at least
  torch::Tensor logits;  // [B, n]: what they sum to, before a soft cap
};

/// The hook names that direct_logit_attribution needs, to be recorded at the positions that are asked about.
INTROSPECT_EXPORT std::vector<std::string> attribution_points(const models::Model& model, Unit unit);

/// Direct logit attribution: how much each part of a model adds to the logits of `tokens`, less those of `wrong`.
///
/// The final norm is held at the scale of the true final residual, under which it is linear (without the mean for
/// LayerNorm), so that the rows sum to the logit exactly. Besides the parts there are rows "ln_final.b" and "b_U" where
/// the model has these biases, and "remainder": what the parts leave of the residual. That is what hooks add between
/// them, and the rounding of narrow dtypes and of the float32 norms after layers (Gemma 2 and 3); otherwise nothing.
///
/// activations: one position of every row, [B, 1, ...], under the names of attribution_points. tokens int64 [B, n];
/// wrong: of the same shape, or undefined. A soft cap on logits (Gemma 2) is not applied.
/// Throws HookError for an activation that is not there, ShapeError for other shapes, std::out_of_range for tokens
/// outside the vocabulary.
INTROSPECT_EXPORT Attribution direct_logit_attribution(const models::Model& model,
                                                       const NamedActivations& activations,
                                                       const torch::Tensor& tokens,
                                                       const torch::Tensor& wrong = {},
                                                       Unit unit = Unit::kComponent);

}  // namespace introspect::analysis

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::models {

/// A weight under the name and in the shape that TransformerLens gives it: "embed.W_E", "blocks.3.attn.W_Q".
///
/// Weights act from the right, on rows: W_E [V, D], W_pos [n_ctx, D], W_Q [H, D, K], W_O [H, K, D], W_gate and W_in
/// [D, M], W_out [M, D], W_U [D, V]. Biases are zeros where the model has none: b_Q [H, K], b_O [D], b_in [M],
/// b_out [D], b_U [V]; b_gate [M] is a gate's. Keys and values of a group have two names: "attn._W_K" [G, D, K] holds
/// each group once, "attn.W_K" [H, D, K] repeats it for every query head of the group, and so for W_V, b_K and b_V.
/// Norms have w, one more than what is stored in a Gemma checkpoint, and LayerNorm b: "ln1", "ln2", "ln1_post",
/// "ln2_post", "attn.q_norm" and "attn.k_norm" of a block, and "ln_final". What TransformerLens calls ln1 and ln2 of OLMo 2
/// and 3, which norm what layers write, is ln1_post and ln2_post here. A mixture of experts has no W_in: its names are
/// "mlp.W_gate.weight" [E, D] of the router, and "mlp.experts.0.W_gate.weight" and W_in [M, D], W_out [D, M] of an expert,
/// which TransformerLens keeps as [out, in], and ".bias" where there are biases.
///
/// What the model has is returned as a view of the tensor in use and must not be written to: the model is immutable,
/// and other models may share it. Repeated groups, missing biases, a scaled embedding (Gemma: W_E holds the scale, so
/// that its rows are what hook_embed sees) and weights with an adapter, whose product is added in, are copies.
/// Throws std::invalid_argument for a name that the model does not have.
INTROSPECT_EXPORT torch::Tensor weight(const Model& model, std::string_view name);

/// The names of TransformerLens's state dict of this model, in the order of the forward pass; keys and values of
/// grouped attention are there by the group.
INTROSPECT_EXPORT std::vector<std::string> weight_names(const Model& model);

/// A weight of every block in one tensor, [L, ...]: "attn.W_Q" gives [L, H, D, K]. A copy.
///
/// Throws std::invalid_argument for a name that the model's blocks do not have.
INTROSPECT_EXPORT torch::Tensor stacked_weight(const Model& model, std::string_view name);

}  // namespace introspect::models

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

/// Activations of one pass by full hook name, [B, T, ...], or [T, ...] where the batch dimension was removed.
///
/// Those of a hooks::ActivationCache are its items(), a copy: name it before its begin() and end() are taken. They may be
/// on another device, or of another dtype, than the model.
using NamedActivations = std::map<std::string, torch::Tensor>;

/// Components of a residual stream, [n, ..., D], and a label for each: "embed", "3_attn_out", "L3H7", "L3N100".
struct Stack {
  torch::Tensor components;
  std::vector<std::string> labels;
};

/// Which stream is taken apart, and what is returned of it.
struct StackOptions {
  int64_t layer = 0;         // the stream that enters this block; n_layers: the unembedding
  bool mlp_input = false;    // the stream that enters the block's MLP (in parallel blocks the same one)
  bool apply_ln = false;     // as the norm there passes it on: see apply_norm
  torch::Tensor positions;   // int64 [n]: of these positions only; undefined: all
  torch::Tensor projection;  // [D, n_outputs]: D becomes n_outputs, and nothing of D entries a neuron is made
};

/// Which layers decompose_resid lists.
enum class Sublayers { kAll, kAttention, kMlp };

/// Components are what is added to the stream, so that those of a decomposition sum to it. Where a norm stands after
/// a layer (Gemma 2 and 3), it is applied to the layer's heads, neurons and biases with its scale held at the cached
/// one, under which it is linear.
///
/// All are returned in the dtype of the activations, or with a projection in float32 at least; they are computed and
/// summed in float32 at least. All throw HookError for an activation that is needed and not there, std::out_of_range
/// for a layer or position the model does not have, and ShapeError for a projection that is not [D, n].

/// The residual stream before each block up to `layer`, labelled "3_pre", "3_mid" and "final_post".
///
/// apply_ln at layer n_layers is the logit lens: the final norm with each stream's own scale and with its bias. At
/// earlier layers it is apply_norm. incl_mid adds the streams between attention and MLP.
INTROSPECT_EXPORT Stack accumulated_resid(const models::Model& model, const NamedActivations& activations,
                                          const StackOptions& options, bool incl_mid = false);

/// The embeddings and what each attention layer and MLP writes.
INTROSPECT_EXPORT Stack decompose_resid(const models::Model& model, const NamedActivations& activations,
                                        const StackOptions& options, Sublayers mode = Sublayers::kAll,
                                        bool incl_embeds = true);

/// What each head writes; b_O belongs to none. incl_remainder adds the rest of the stream, "remainder".
INTROSPECT_EXPORT Stack stack_head_results(const models::Model& model, const NamedActivations& activations,
                                           const StackOptions& options, bool incl_remainder = false);

/// What each neuron of the MLPs before `layer` writes; b_out belongs to none. `neurons` int64 [n] chooses some of each
/// layer; undefined: all.
INTROSPECT_EXPORT Stack stack_neuron_results(const models::Model& model, const NamedActivations& activations,
                                             const StackOptions& options, const torch::Tensor& neurons = {},
                                             bool incl_remainder = false);

/// Every head, every neuron (or MLP, without expand_neurons), the embeddings, and the biases in one component "bias".
INTROSPECT_EXPORT Stack full_resid_decomposition(const models::Model& model,
                                                 const NamedActivations& activations,
                                                 const StackOptions& options, bool expand_neurons = true);

/// What each neuron of one MLP writes, [n, ..., D]; of the options positions and projection are used.
INTROSPECT_EXPORT torch::Tensor neuron_results(const models::Model& model,
                                               const NamedActivations& activations,
                                               const StackOptions& options,
                                               const torch::Tensor& neurons = {});

/// attn.hook_result of a layer, [..., H, D], from its attn.hook_z [..., H, K].
INTROSPECT_EXPORT torch::Tensor head_results(const models::Model& model, int64_t layer,
                                             const torch::Tensor& z);

/// The sum of b_O and b_out before `layer` (and of its own b_O with mlp_input), [D].
///
/// Throws ConfigError where biases pass a norm, since they then differ from position to position.
INTROSPECT_EXPORT torch::Tensor accumulated_bias(const models::Model& model, int64_t layer,
                                                 bool mlp_input = false, bool include_mlp_biases = true);

/// A stack [n, ..., D] as the norm before a block, its MLP or the unembedding passes it on.
///
/// With the cached scale [..., 1], (x - mean(x)) / scale * weight, the mean for LayerNorm only. This is linear: what
/// the components of a stream become sums to what the stream becomes, but for the bias, which belongs to none of them.
/// The weight is in it, so that weights need not have been folded; where they have, it is one. Without a scale
/// (undefined) the whole norm of each component, bias included.
INTROSPECT_EXPORT torch::Tensor apply_norm(const models::Model& model, const torch::Tensor& stack,
                                           const torch::Tensor& scale, int64_t layer, bool mlp_input = false);

/// How much each component of a stack [n, ..., D] adds to the logits of tokens, or to a difference of logits.
///
/// scale [..., 1] is that of the final norm, which is applied as by apply_norm; tokens and incorrect_tokens (undefined:
/// none) are int64 and broadcast against the dimensions between n and D. Returns [n, ...], float32 at least. Over a
/// whole decomposition they sum to the logit, but for the bias of the final norm, b_U and a soft cap on logits.
/// Throws std::out_of_range for tokens that are not in the vocabulary, ShapeError for shapes that do not broadcast.
INTROSPECT_EXPORT torch::Tensor logit_attributions(const models::Model& model, const torch::Tensor& stack,
                                                   const torch::Tensor& scale, const torch::Tensor& tokens,
                                                   const torch::Tensor& incorrect_tokens = {});

}  // namespace introspect::analysis

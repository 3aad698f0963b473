#include "bindings.h"

#include "introspect/analysis/composition.h"
#include "introspect/analysis/residual_stream.h"

namespace introspect::python {

namespace {

using analysis::NamedActivations;
using analysis::StackOptions;
using models::Model;
using MaybeTensor = std::optional<torch::Tensor>;

analysis::Sublayers parse_sublayers(const std::string& mode) {
  if (mode == "all") return analysis::Sublayers::kAll;
  if (mode == "attn") return analysis::Sublayers::kAttention;
  if (mode == "mlp") return analysis::Sublayers::kMlp;
  throw std::invalid_argument("decompose_resid: mode must be all, mlp or attn, got " + mode);
}

analysis::Composition parse_composition(const std::string& mode) {
  if (mode == "Q") return analysis::Composition::kQ;
  if (mode == "K") return analysis::Composition::kK;
  if (mode == "V") return analysis::Composition::kV;
  throw std::invalid_argument("composition_scores: mode must be Q, K or V, got " + mode);
}

StackOptions options(int64_t layer, bool mlp_input, bool apply_ln, const MaybeTensor& positions,
                     const MaybeTensor& projection = {}) {
  return {layer, mlp_input, apply_ln, positions.value_or(torch::Tensor{}),
          projection.value_or(torch::Tensor{})};
}

std::pair<torch::Tensor, std::vector<std::string>> as_pair(analysis::Stack stack) {
  return {std::move(stack.components), std::move(stack.labels)};
}

void bind_decompositions(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def(
      "accumulated_resid",
      [](const Model& model, const NamedActivations& activations, int64_t layer, bool incl_mid,
         bool mlp_input, bool apply_ln, const MaybeTensor& positions) {
        return as_pair(analysis::accumulated_resid(model, activations,
                                                   options(layer, mlp_input, apply_ln, positions), incl_mid));
      },
      py::arg("model"), py::arg("activations"), py::kw_only(), py::arg("layer"), py::arg("incl_mid") = false,
      py::arg("mlp_input") = false, py::arg("apply_ln") = false, py::arg("positions") = py::none(), release,
      R"doc(
The residual stream before each block up to ``layer``, and labels: see ActivationCache.accumulated_resid.

Args:
    activations: full hook name -> tensor.
    positions: int64 [n]; None is all.

Returns:
    [streams, ..., d_model] and a label for each.

Raises:
    HookError: an activation that is needed is not there.
    IndexError: a layer or position the model does not have.
)doc");
  m.def(
      "decompose_resid",
      [](const Model& model, const NamedActivations& activations, int64_t layer, bool mlp_input,
         const std::string& mode, bool apply_ln, const MaybeTensor& positions, bool incl_embeds) {
        return as_pair(analysis::decompose_resid(model, activations,
                                                 options(layer, mlp_input, apply_ln, positions),
                                                 parse_sublayers(mode), incl_embeds));
      },
      py::arg("model"), py::arg("activations"), py::kw_only(), py::arg("layer"), py::arg("mlp_input") = false,
      py::arg("mode") = "all", py::arg("apply_ln") = false, py::arg("positions") = py::none(),
      py::arg("incl_embeds") = true, release,
      "What the embeddings and each layer add to the stream: see ActivationCache.decompose_resid.");
  m.def(
      "stack_head_results",
      [](const Model& model, const NamedActivations& activations, int64_t layer, bool incl_remainder,
         bool apply_ln, const MaybeTensor& positions) {
        return as_pair(analysis::stack_head_results(
            model, activations, options(layer, /*mlp_input=*/false, apply_ln, positions), incl_remainder));
      },
      py::arg("model"), py::arg("activations"), py::kw_only(), py::arg("layer"),
      py::arg("incl_remainder") = false, py::arg("apply_ln") = false, py::arg("positions") = py::none(),
      release, "What each head adds to the stream: see ActivationCache.stack_head_results.");
  m.def(
      "stack_neuron_results",
      [](const Model& model, const NamedActivations& activations, int64_t layer, const MaybeTensor& neurons,
         bool incl_remainder, bool apply_ln, const MaybeTensor& positions, const MaybeTensor& projection) {
        return as_pair(analysis::stack_neuron_results(
            model, activations, options(layer, /*mlp_input=*/false, apply_ln, positions, projection),
            neurons.value_or(torch::Tensor{}), incl_remainder));
      },
      py::arg("model"), py::arg("activations"), py::kw_only(), py::arg("layer"),
      py::arg("neurons") = py::none(), py::arg("incl_remainder") = false, py::arg("apply_ln") = false,
      py::arg("positions") = py::none(), py::arg("projection") = py::none(), release,
      "What each neuron adds to the stream: see ActivationCache.stack_neuron_results.");
  m.def(
      "full_resid_decomposition",
      [](const Model& model, const NamedActivations& activations, int64_t layer, bool mlp_input,
         bool expand_neurons, bool apply_ln, const MaybeTensor& positions, const MaybeTensor& projection) {
        return as_pair(analysis::full_resid_decomposition(
            model, activations, options(layer, mlp_input, apply_ln, positions, projection), expand_neurons));
      },
      py::arg("model"), py::arg("activations"), py::kw_only(), py::arg("layer"), py::arg("mlp_input") = false,
      py::arg("expand_neurons") = true, py::arg("apply_ln") = false, py::arg("positions") = py::none(),
      py::arg("projection") = py::none(), release,
      "Every component of the stream: see ActivationCache.get_full_resid_decomposition.");
  m.def(
      "neuron_results",
      [](const Model& model, const NamedActivations& activations, int64_t layer, const MaybeTensor& neurons,
         const MaybeTensor& positions, const MaybeTensor& projection) {
        return analysis::neuron_results(model, activations,
                                        options(layer, false, false, positions, projection),
                                        neurons.value_or(torch::Tensor{}));
      },
      py::arg("model"), py::arg("activations"), py::kw_only(), py::arg("layer"),
      py::arg("neurons") = py::none(), py::arg("positions") = py::none(), py::arg("projection") = py::none(),
      release, "What each neuron of one layer adds to the stream, [neurons, ..., d_model].");
}

}  // namespace

void bind_analysis(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  bind_decompositions(m);
  m.def("head_results", &analysis::head_results, py::arg("model"), py::arg("layer"), py::arg("z"), release,
        "attn.hook_result of a layer, [..., n_heads, d_model], from its attn.hook_z [..., n_heads, d_head].");
  m.def("accumulated_bias", &analysis::accumulated_bias, py::arg("model"), py::arg("layer"),
        py::arg("mlp_input") = false, py::arg("include_mlp_biases") = true, release, R"doc(
The sum [d_model] of b_O and b_out of the blocks before ``layer``, and with mlp_input of its own b_O.

Raises:
    ConfigError: biases pass a norm (Gemma 2 and 3 with biases) and differ from position to position.
)doc");
  m.def(
      "apply_norm",
      [](const Model& model, const torch::Tensor& stack, const MaybeTensor& scale, int64_t layer,
         bool mlp_input) {
        return analysis::apply_norm(model, stack, scale.value_or(torch::Tensor{}), layer, mlp_input);
      },
      py::arg("model"), py::arg("stack"), py::arg("scale"), py::kw_only(), py::arg("layer"),
      py::arg("mlp_input") = false, release, R"doc(
A stack [n, ..., d_model] as the norm before a block, its MLP or (layer n_layers) the unembedding passes it on.

Args:
    scale: the cached hook_scale [..., 1], held fixed: weight * x / scale, without the mean for LayerNorm, and without
        the bias. None: the whole norm of each component, bias included.
)doc");
  m.def(
      "logit_attributions",
      [](const Model& model, const torch::Tensor& stack, const torch::Tensor& scale,
         const torch::Tensor& tokens, const MaybeTensor& incorrect_tokens) {
        return analysis::logit_attributions(model, stack, scale, tokens,
                                            incorrect_tokens.value_or(torch::Tensor{}));
      },
      py::arg("model"), py::arg("stack"), py::arg("scale"), py::arg("tokens"),
      py::arg("incorrect_tokens") = py::none(), release, R"doc(
What each component of a stack [n, ..., d_model] adds to the logit of tokens, or to a difference of logits.

Args:
    scale: ln_final.hook_scale [..., 1].
    tokens: int64, broadcast against the dimensions between n and d_model.
    incorrect_tokens: their logit is subtracted.

Returns:
    [n, ...], float32 at least.
)doc");
  m.def(
      "composition_scores",
      [](const Model& model, const std::string& mode) {
        return analysis::composition_scores(model, parse_composition(mode));
      },
      py::arg("model"), py::arg("mode"), release, R"doc(
Composition scores of all pairs of heads, [n_layers, n_heads, n_layers, n_heads], the earlier head first.

Args:
    mode: what of the later head reads what the earlier one writes: "Q", "K" or "V".

Returns:
    ||W_OV M|| / (||W_OV|| ||M||) in Frobenius norms, M being the later head's W_Q W_K^T, W_K W_Q^T or W_V W_O; zero
    unless the second layer is the higher one. Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
)doc");
}

}  // namespace introspect::python

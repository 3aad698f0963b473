#include "bindings.h"

#include "introspect/core/check.h"
#include "introspect/sae/cross_layer_trainer.h"

#include "trainer_file.h"

namespace introspect::python {
namespace {

using sae::CrossLayerTrainer;
using sae::CrossLayerWeights;
using sae::TrainerOptions;
using OptionalTensor = std::optional<torch::Tensor>;
using Layers = std::vector<std::map<std::string, torch::Tensor>>;
using NoGil = py::call_guard<py::gil_scoped_release>;

/// Each layer's tensors by name, b_dec [L, D] and W_skip [L, D, d_in] or nothing.
using Tensors = std::tuple<Layers, OptionalTensor, OptionalTensor>;

OptionalTensor given(const torch::Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

Tensors tensors_of(const CrossLayerWeights& weights) {
  Layers layers;
  for (const auto& layer : weights.layers) {
    const auto operands = layer.operands();
    layers.emplace_back(operands.begin(), operands.end());
  }
  return {std::move(layers), given(weights.b_dec_LD), given(weights.W_skip_LDD)};
}

CrossLayerWeights weights_of(const Tensors& tensors, torch::Device device) {
  const auto moved = [&](const OptionalTensor& t) { return t ? t->to(device) : torch::Tensor{}; };
  CrossLayerWeights out;
  for (const auto& layer : std::get<0>(tensors)) {
    hooks::Operands::Tensors operands;
    for (const auto& [name, tensor] : layer) operands[name] = tensor.to(device);
    const auto& weights = out.layers.emplace_back(sae::DictionaryWeights::from_operands(operands));
    for (const auto& [name, tensor] : operands)
      check<ConfigError>(weights.operands().contains(name), "CrossLayerTrainer: a layer has no weight named ",
                         name);
  }
  out.b_dec_LD = moved(std::get<1>(tensors));
  out.W_skip_LDD = moved(std::get<2>(tensors));
  return out;
}

}  // namespace

void bind_cross_layer_trainer(py::module_& m) {
  py::class_<CrossLayerTrainer> type(
      m, "CrossLayerTrainer",
      "A cross-layer transcoder being trained: see introspect.sae.CrossLayerTrainer.");
  type.def(py::init([](const std::string& options, int64_t n_layers, int64_t d_in, int64_t d_out,
                       const sae::DictionaryOrigin& origin, const std::optional<Tensors>& start,
                       torch::Device device) {
             const auto wanted = TrainerOptions::from_json(options);
             if (start) return CrossLayerTrainer(wanted, weights_of(*start, device), origin);
             return CrossLayerTrainer(wanted, n_layers, d_in, d_out, origin, device);
           }),
           py::arg("options"), py::arg("n_layers"), py::arg("d_in"), py::arg("d_out"), py::kw_only(),
           py::arg_v("origin", sae::DictionaryOrigin{}, "DictionaryOrigin()"), py::arg("start") = py::none(),
           py::arg("device") = torch::Device(torch::kCPU), NoGil(),
           "Options as JSON, start as ``weights`` gives it: see introspect.sae.CrossLayerTrainer.")
      .def("measure", &CrossLayerTrainer::measure, py::arg("x"), py::arg("y"), NoGil(), R"doc(
Gather lengths of rows for input_norm "expected_average_only_in", over as many batches as it is called with.

Args:
    x: [n_layers, rows, d_in].
    y: [n_layers, rows, d_out].
)doc")
      .def("step", &CrossLayerTrainer::step, py::arg("x"), py::arg("y"), NoGil(), R"doc(
One update.

Args:
    x: [n_layers, rows, d_in], what the MLPs read; any floating dtype.
    y: [n_layers, rows, d_out], what they write.

Returns:
    TrainerMetrics: losses and l0 are sums over layers.

Raises:
    ShapeError: other shapes.
    Error: a loss or gradient that is not finite, or every feature dead. The trainer is then as it was before.
)doc")
      .def(
          "gradients",
          [](const CrossLayerTrainer& trainer, const torch::Tensor& x, const torch::Tensor& y) {
            const auto [metrics, gradients] = trainer.gradients(x, y);
            return std::make_pair(metrics, tensors_of(gradients));
          },
          py::arg("x"), py::arg("y"), NoGil(), R"doc(
Metrics and gradients as the next step would take them, before clipping; nothing is changed.

Returns:
    TrainerMetrics, and gradients in the form of ``weights``.
)doc")
      .def("transcoder", &CrossLayerTrainer::transcoder, NoGil(),
           "The transcoder as it stands, in the form that infers.")
      .def(
          "weights", [](const CrossLayerTrainer& trainer) { return tensors_of(trainer.weights()); },
          "Copies of what is trained: a {name: tensor} for each layer, b_dec [n_layers, d_out], and W_skip "
          "or "
          "None.")
      .def("firing_rates", &CrossLayerTrainer::firing_rates,
           "Share of the rows of the last 2,000 to 4,000 steps in which each feature was active, [n_layers, "
           "d_sae] "
           "float64.")
      .def("steps_since_fired", &CrossLayerTrainer::steps_since_fired, "int64 [n_layers, d_sae].")
      .def_property_readonly("n_layers", &CrossLayerTrainer::n_layers);
  bind_trainer_file(type, "cross_layer_trainer.safetensors");
}

}  // namespace introspect::python

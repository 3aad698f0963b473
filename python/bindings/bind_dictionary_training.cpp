#include "bindings.h"

#include <cstdio>

#include "introspect/core/check.h"
#include "introspect/sae/trainer.h"

#include "trainer_file.h"

namespace introspect::python {
namespace {

using sae::Trainer;
using sae::TrainerMetrics;
using sae::TrainerOptions;
using Tensors = std::map<std::string, torch::Tensor>;
using OptionalTensor = std::optional<torch::Tensor>;
using NoGil = py::call_guard<py::gil_scoped_release>;

constexpr std::pair<const char*, double TrainerMetrics::*> kNumbers[] = {
    {"loss", &TrainerMetrics::loss},
    {"mse", &TrainerMetrics::mse},
    {"sparsity_loss", &TrainerMetrics::sparsity_loss},
    {"aux_loss", &TrainerMetrics::aux_loss},
    {"l0", &TrainerMetrics::l0},
    {"explained_variance", &TrainerMetrics::explained_variance},
    {"dead_share", &TrainerMetrics::dead_share},
    {"gradient_norm", &TrainerMetrics::gradient_norm},
    {"lr", &TrainerMetrics::lr},
    {"coefficient", &TrainerMetrics::coefficient},
    {"threshold", &TrainerMetrics::threshold},
};

Trainer make_trainer(const std::string& options, int64_t d_in, std::optional<int64_t> d_out,
                     const sae::DictionaryOrigin& origin, const std::optional<Tensors>& start,
                     torch::Device device) {
  const auto given = TrainerOptions::from_json(options);
  if (!start) return {given, origin, d_in, d_out.value_or(d_in), device};
  hooks::Operands::Tensors tensors;
  for (const auto& [name, tensor] : *start) tensors[name] = tensor.to(device);
  const auto weights = sae::DictionaryWeights::from_operands(tensors);
  for (const auto& [name, tensor] : tensors)
    check<ConfigError>(weights.operands().contains(name), "Trainer: a dictionary has no weight named ", name);
  return {given, origin, weights};
}

Tensors tensors_of(const sae::DictionaryWeights& weights) {
  const auto operands = weights.operands();
  return {operands.begin(), operands.end()};
}

std::string shown(const TrainerMetrics& m) {
  char text[256];
  std::snprintf(
      text, sizeof text,
      "TrainerMetrics(step=%lld, loss=%.5g, mse=%.5g, l0=%.4g, explained_variance=%.4f, dead_share=%.3f)",
      static_cast<long long>(m.step), m.loss, m.mse, m.l0, m.explained_variance, m.dead_share);
  return text;
}

void bind_training_metrics(py::module_& m) {
  py::class_<TrainerMetrics> type(m, "TrainerMetrics", R"doc(
Numbers of one training step, of its batch before the update, in units of the normalised input where there is an input norm.

Attributes:
    step: updates before this one.
    rows: of all steps, this one too.
    loss: mse + sparsity_loss + aux_loss.
    mse: squared error of a row summed over its entries, mean over rows; of Matryoshka the sum over its levels.
    sparsity_loss, aux_loss: with their coefficients.
    l0: features that are not 0, of a row.
    explained_variance: 1 - E|x - x_hat|^2 / E|x - E x|^2 over the batch.
    dead_share: of features, not active for more than dead_window steps.
    gradient_norm: before clipping.
    lr, coefficient: of this step: learning rate, and l1 or l0 coefficient.
    threshold: BatchTopK's; of JumpReLU the mean.
)doc");
  type.def_readonly("step", &TrainerMetrics::step).def_readonly("rows", &TrainerMetrics::rows);
  for (const auto& [name, number] : kNumbers) type.def_readonly(name, number);
  type.def(
          "to_dict",
          [](const TrainerMetrics& metrics) {
            py::dict out;
            out["step"] = metrics.step;
            out["rows"] = metrics.rows;
            for (const auto& [name, number] : kNumbers) out[name] = metrics.*number;
            return out;
          },
          "Name to number: a row of a table.")
      .def("__repr__", &shown);
}

}  // namespace

void bind_dictionary_training(py::module_& m) {
  bind_training_metrics(m);
  py::class_<Trainer> type(m, "Trainer", "One dictionary being trained: see introspect.sae.Trainer.");
  type.def(py::init(&make_trainer), py::arg("options"), py::arg("d_in"), py::arg("d_out") = py::none(),
           py::kw_only(), py::arg_v("origin", sae::DictionaryOrigin{}, "DictionaryOrigin()"),
           py::arg("start") = py::none(), py::arg("device") = torch::Device(torch::kCPU),
           "Options as JSON: see introspect.sae.Trainer.")
      .def(
          "measure",
          [](Trainer& trainer, const torch::Tensor& x, const OptionalTensor& y) {
            trainer.measure(x, y.value_or(torch::Tensor{}));
          },
          py::arg("x"), py::arg("y") = py::none(), NoGil(), R"doc(
Gather lengths of rows for input_norm "expected_average_only_in", over as many batches as it is called with.

All before the first step; without it the first step's own batch is measured. Does nothing for other norms.

Args:
    x: [rows, d_in].
    y: [rows, d_out], of a transcoder.
)doc")
      .def(
          "step",
          [](Trainer& trainer, const torch::Tensor& x, const OptionalTensor& y) {
            return trainer.step(x, y.value_or(torch::Tensor{}));
          },
          py::arg("x"), py::arg("y") = py::none(), NoGil(), R"doc(
One update.

Args:
    x: [rows, d_in], any floating dtype.
    y: [rows, d_out], what a transcoder is to write; None otherwise.

Raises:
    ShapeError: other shapes, y missing or too much.
    Error: a loss or gradient that is not finite, or every feature dead. The trainer is then as it was before.
)doc")
      .def(
          "gradients",
          [](const Trainer& trainer, const torch::Tensor& x, const OptionalTensor& y) {
            return trainer.gradients(x, y.value_or(torch::Tensor{}));
          },
          py::arg("x"), py::arg("y") = py::none(), NoGil(), R"doc(
Metrics and gradients as the next step would take them, before clipping and projection; nothing is changed.

Returns:
    TrainerMetrics, and gradients by the names of the weights, W_enc and W_dec feature by feature.
)doc")
      .def(
          "dictionary", &Trainer::dictionary, NoGil(),
          "The dictionary as it stands, in the form that infers: BatchTopK as JumpReLU, input scales folded.")
      .def(
          "weights", [](const Trainer& trainer) { return tensors_of(trainer.weights()); },
          "Copies of the weights that are trained, by name: what ``start`` takes.")
      .def("firing_rates", &Trainer::firing_rates,
           "Share of the rows of the last 2,000 to 4,000 steps in which each feature was active, [d_sae] "
           "float64.")
      .def("steps_since_fired", &Trainer::steps_since_fired,
           "int64 [d_sae]: 0 of the features that were active in the last step.");
  bind_trainer_file(type, "trainer.safetensors");
  m.def(
      "anthropic_jumprelu",
      [](int64_t d_in, int64_t d_sae, int64_t total_steps) {
        return py::module_::import("json").attr("loads")(
            sae::anthropic_jumprelu(d_in, d_sae, total_steps).to_json());
      },
      py::arg("d_in"), py::arg("d_sae"), py::arg("total_steps"),
      "Options of Anthropic's JumpReLU of January 2025: see introspect.sae.anthropic_jumprelu.");
}

}  // namespace introspect::python

#include "bindings.h"

#include "introspect/models/adapter.h"
#include "introspect/training/lora_trainer.h"
#include "introspect/training/score_examples.h"

namespace introspect::python {

using training::LoraExample;
using training::LoraOptions;
using training::LoraStep;
using training::LoraTrainer;
using NoGil = py::call_guard<py::gil_scoped_release>;

void bind_lora_training(py::module_& m) {
  // The model is bound after the adapter.
  py::reinterpret_borrow<py::class_<models::Adapter, std::shared_ptr<models::Adapter>>>(m.attr("Adapter"))
      .def_static(
          "create",
          [](const models::Model& model, int64_t rank, double alpha, const std::vector<std::string>& targets,
             const std::vector<int64_t>& layers, uint64_t seed) {
            return std::const_pointer_cast<models::Adapter>(
                models::Adapter::create(model, {rank, alpha, targets, layers, seed}));
          },
          py::arg("model"), py::kw_only(), py::arg("rank") = models::AdapterOptions{}.rank,
          py::arg("alpha") = models::AdapterOptions{}.alpha, py::arg("targets") = std::vector<std::string>{},
          py::arg("layers") = std::vector<int64_t>{}, py::arg("seed") = models::AdapterOptions{}.seed,
          py::call_guard<py::gil_scoped_release>(), R"doc(
An adapter that changes nothing yet, as peft starts one: A uniform within 1 / sqrt(in), B zero.

Args:
    model: the native model.
    rank, alpha: what is added is alpha / rank B A x, A [rank, in] and B [out, rank].
    targets: ends of modules' names: "q_proj", "mlp.c_proj"; empty: every product of a block.
    layers: blocks; empty: all.
    seed: of A.

Raises:
    ValueError: a rank below 1, or an alpha that is not above 0.
    IndexError: a layer that the model does not have.
    ConfigError: a target that no module is called, with the nearest names.
)doc");

  py::class_<LoraExample>(m, "LoraExample",
                          "Token ids that introspect.train_lora learns from: see introspect.FinetuneExample.")
      .def(py::init([](std::vector<int64_t> prompt, std::vector<int64_t> target,
                       std::map<int64_t, torch::Tensor> added, int64_t first, int64_t last) {
             return LoraExample{std::move(prompt), std::move(target), std::move(added), first, last};
           }),
           py::arg("prompt"), py::arg("target"), py::kw_only(),
           py::arg("added") = std::map<int64_t, torch::Tensor>{}, py::arg("first") = 0, py::arg("last") = 0);

  py::class_<LoraStep>(m, "LoraStep", R"doc(
One step of a LoraTrainer, before its update.

Attributes:
    step: updates before this one.
    loss: mean cross-entropy of the batch's target tokens, in nats.
    gradient_norm: of all matrices together, before clipping.
    lr: of this step.
)doc")
      .def_readonly("step", &LoraStep::step)
      .def_readonly("loss", &LoraStep::loss)
      .def_readonly("gradient_norm", &LoraStep::gradient_norm)
      .def_readonly("lr", &LoraStep::lr);

  py::class_<LoraTrainer::Cost>(m, "LoraCost", R"doc(
What a pass over all examples of a LoraTrainer costs.

Attributes:
    tokens: of all examples, each by itself.
    nodes: that run instead: equal beginnings with equal injections are one path.
    first_layer: the lowest block that is trained; those below have no gradient.
    n_params: trained.
    keeps_residuals: the blocks below run once for all steps.
)doc")
      .def_readonly("tokens", &LoraTrainer::Cost::tokens)
      .def_readonly("nodes", &LoraTrainer::Cost::nodes)
      .def_readonly("first_layer", &LoraTrainer::Cost::first_layer)
      .def_readonly("n_params", &LoraTrainer::Cost::n_params)
      .def_readonly("keeps_residuals", &LoraTrainer::Cost::keeps_residuals);

  py::class_<LoraTrainer>(m, "LoraTrainer",
                          "What introspect.train_lora drives: a LoRA adapter being trained.")
      .def(py::init([](const std::shared_ptr<models::Model>& model,
                       const std::shared_ptr<models::Adapter>& start,
                       const std::vector<LoraExample>& examples, int64_t steps, int64_t batch_size, double lr,
                       double lr_end, double clip, uint64_t seed, int64_t memory_budget) {
             return LoraTrainer(model, start, examples,
                                {steps, batch_size, lr, lr_end, clip, seed, memory_budget});
           }),
           py::arg("model"), py::arg("start"), py::arg("examples"), py::kw_only(), py::arg("steps"),
           py::arg("batch_size") = LoraOptions{}.batch_size, py::arg("lr") = LoraOptions{}.lr,
           py::arg("lr_end") = LoraOptions{}.lr_end, py::arg("clip") = LoraOptions{}.clip,
           py::arg("seed") = LoraOptions{}.seed, py::arg("memory_budget") = LoraOptions{}.memory_budget,
           NoGil(),
           "Arguments and errors are those of introspect.train_lora; start: introspect.Adapter.create(...).")
      .def_property_readonly("steps", &LoraTrainer::steps, "Updates done.")
      .def_property_readonly("cost", &LoraTrainer::cost)
      .def(
          "step",
          [](LoraTrainer& trainer, py::object progress) {
            const auto shown = as_progress(std::move(progress));
            const py::gil_scoped_release release;
            return trainer.step(shown);
          },
          py::arg("progress") = py::none(), R"doc(
One update.

Raises:
    Error: a loss or gradient that is not finite: the adapter is then as it was before.
)doc")
      .def("gradients", &LoraTrainer::gradients, py::arg("examples"), NoGil(), R"doc(
Loss and gradients of a batch of these examples, before clipping; nothing is changed.

Args:
    examples: their numbers.

Returns:
    The loss, and gradients by name: "model.layers.3.self_attn.q_proj.lora_A" is [r, in].
)doc")
      .def(
          "adapter",
          [](const LoraTrainer& trainer) {
            return std::const_pointer_cast<models::Adapter>(trainer.adapter());
          },
          NoGil(), "The adapter as it stands: a copy.")
      .def("save", &LoraTrainer::save, py::arg("file"), NoGil(), R"doc(
Writes matrices, moments and the number of steps.

Raises:
    IoError: the file cannot be written.
)doc")
      .def("resume", &LoraTrainer::resume, py::arg("file"), NoGil(), R"doc(
Goes on from a file of ``save`` with the same numbers as without the interruption.

Raises:
    IoError: a file that is missing or damaged.
    ConfigError: one of another training: model, its precision or kind of device, start, examples or options.
)doc");

  m.def(
      "score_examples",
      [](const models::Model& model, const std::vector<LoraExample>& examples, int64_t memory_budget,
         py::object progress) {
        const auto shown = as_progress(std::move(progress));
        const py::gil_scoped_release release;
        const auto scores = training::score_examples(model, examples, memory_budget, shown);
        return std::pair(scores.losses, scores.greedy);
      },
      py::arg("model"), py::arg("examples"), py::kw_only(), py::arg("memory_budget") = int64_t{1} << 30,
      py::arg("progress") = py::none(), R"doc(
How a model answers examples: see introspect.score_examples.

Returns:
    float64 [n], the mean cross-entropy of each example's target tokens; bool [n], whether greedy decoding gives the target.
)doc");
}

}  // namespace introspect::python

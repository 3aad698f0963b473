#include "bindings.h"

#include "native_model.h"
#include "value_type.h"

#include "introspect/analysis/jacobian_lens.h"
#include "introspect/analysis/lens.h"
#include "introspect/analysis/lens_reading.h"
#include "introspect/analysis/patchscope.h"
#include "introspect/analysis/tuned_lens.h"

namespace introspect::python {
namespace {

using analysis::Lens;
using analysis::LensReading;
using models::Model;
using NoGil = py::call_guard<py::gil_scoped_release>;
using Texts = std::vector<std::vector<int64_t>>;

analysis::LensOptimizer parse_optimizer(const std::string& name) {
  if (name == "sgd") return analysis::LensOptimizer::sgd;
  if (name == "adam") return analysis::LensOptimizer::adam;
  throw std::invalid_argument("train_tuned_lens: optimizer must be sgd or adam, got " + name);
}

void bind_lens(py::module_& m) {
  py::class_<Lens> type(m, "Lens", R"doc(
Residuals of every layer as the next token's logits: a logit, tuned or Jacobian lens, as one value.

Layers are numbers of blocks, whose output is read; -1 is the stream before the first block. After the last block every
lens is the model's own readout. Statistics of the final norm are those of what it is given, at every layer.
)doc");
  copy_as_value(type);
  type.def(py::init([](const std::string& kind, const py::object& model,
                       const std::map<int64_t, std::pair<torch::Tensor, std::optional<torch::Tensor>>>&
                           translators) {
             const auto native = native_model(model);
             std::map<int64_t, analysis::Translator> given;
             for (const auto& [layer, one] : translators)
               given[layer] = {one.first, one.second.value_or(torch::Tensor{})};
             return Lens(analysis::parse_lens_kind(kind),
                         {native->cfg().model_name, native->hash(), analysis::unembedding_hash(*native),
                          native->cfg().n_layers, native->cfg().d_model},
                         std::move(given));
           }),
           py::arg("kind"), py::arg("model"), py::arg("translators"), R"doc(
Args:
    kind: tuned (h + W h + b) or jacobian (W h); ``Lens.logit(model)`` makes a logit lens.
    translators: (W [d_model, d_model], b [d_model] or None) by layer.

Raises:
    ShapeError: other shapes.
    IndexError: a layer that has none: the last one, and -1 of a Jacobian lens.
    ValueError: values that are not finite.
)doc")
      .def_static(
          "logit", [](const py::object& model) { return Lens::logit(*native_model(model)); },
          py::arg("model"), "The logit lens of a model: nothing stands before its own norm and unembedding.")
      .def_static("load", &Lens::load, py::arg("path"), NoGil(), R"doc(
Read a lens: a folder of the tuned-lens package, the .pt of a Jacobian lens, or a .safetensors file of ours.

Nothing in the files is executed.

Raises:
    IoError: a file is missing or damaged.
    ConfigError: it holds something else.
)doc")
      .def("save", &Lens::save, py::arg("path"), NoGil(), R"doc(
Write the lens, whole or not at all.

Args:
    path: a name in .safetensors; in .pt, for a Jacobian lens, in float16 as published; or else a folder as the tuned-lens
        package has it (params.pt, config.json), for a tuned lens of all layers.

Raises:
    ConfigError: the format does not hold such a lens.
    IoError: it cannot be written.
)doc")
      .def_property_readonly(
          "kind", [](const Lens& lens) { return analysis::to_string(lens.kind()); },
          "logit, tuned or jacobian.")
      .def_property_readonly("layers", &Lens::layers,
                             "The layers that it reads, ascending, the last block among them.")
      .def_property_readonly("hash", &Lens::hash, "Hex SHA-256 of kind and translators.")
      .def_property_readonly("model_name", [](const Lens& lens) { return lens.origin().model_name; })
      .def_property_readonly(
          "model_hash", [](const Lens& lens) { return lens.origin().model_hash; },
          "Of the checkpoint it is of; empty where a file of another package does not say.")
      .def_property_readonly(
          "unembed_hash", [](const Lens& lens) { return lens.origin().unembed_hash; },
          "Of the unembedding, as the tuned-lens package makes it; empty if not known.")
      .def_property_readonly("n_layers", [](const Lens& lens) { return lens.origin().n_layers; })
      .def_property_readonly("d_model", [](const Lens& lens) { return lens.origin().d_model; })
      .def_property_readonly(
          "notes",
          [](const Lens& lens) { return py::module_::import("json").attr("loads")(lens.origin().notes); },
          "How it was made, and what training saw.")
      .def_property_readonly(
          "translators",
          [](const Lens& lens) {
            py::dict out;
            for (const auto& [layer, one] : lens.translators())
              out[py::int_(layer)] = py::make_tuple(one.W, one.b.defined() ? py::cast(one.b) : py::none());
            return out;
          },
          "(W, b or None) by layer.")
      .def(
          "check_model",
          [](const Lens& lens, const py::object& model) { lens.check_model(*native_model(model)); },
          py::arg("model"), R"doc(
Raises:
    ShapeError: a model of another width or depth.
    ConfigError: another checkpoint or, where the lens does not know its own, another unembedding.
)doc")
      .def(
          "rebound",
          [](const Lens& lens, const py::object& model) { return lens.rebound(*native_model(model)); },
          py::arg("model"), "The same lens for another model of its sizes: one that was fine-tuned, say.")
      .def("translate", &Lens::translate, py::arg("resid"), py::arg("layer"), NoGil(),
           "Residuals [..., d_model] of a layer as the final norm is given them, float32.")
      .def(
          "logits",
          [](const Lens& lens, const py::object& model, const torch::Tensor& resid,
             const std::vector<int64_t>& layers, const std::optional<torch::Tensor>& vocab_ids) {
            const auto native = native_model(model);
            const py::gil_scoped_release release;
            return lens.logits(*native, resid, layers, vocab_ids.value_or(torch::Tensor{}));
          },
          py::arg("model"), py::arg("resid"), py::arg("layers"), py::kw_only(),
          py::arg("vocab_ids") = py::none(),
          R"doc(
Logits of residuals.

Args:
    resid: [..., layers, d_model].
    layers: of each of them.
    vocab_ids: int64 [n], of these tokens only.

Returns:
    [..., layers, d_vocab], float32 (float64 of a float64 model).

Raises:
    ConfigError: the lens is of another model.
    IndexError: a layer that the lens does not read.
)doc");
}

}  // namespace

void bind_lenses(py::module_& m) {
  bind_lens(m);
  m.def(
      "unembedding_hash",
      [](const py::object& model) { return analysis::unembedding_hash(*native_model(model)); },
      py::arg("model"), "The hash of an unembedding in the config.json of the tuned-lens package.");

  py::class_<LensReading>(m, "LensReading",
                          "What a lens reads of one text: see introspect.analysis.logit_lens.")
      .def_readonly("layers", &LensReading::layers)
      .def_readonly("labels", &LensReading::labels)
      .def_readonly("positions", &LensReading::positions)
      .def_readonly("tokens", &LensReading::tokens)
      .def_readonly("top_ids", &LensReading::top_ids)
      .def_readonly("top_log_probs", &LensReading::top_log_probs)
      .def_readonly("target_ranks", &LensReading::target_ranks)
      .def_readonly("target_log_probs", &LensReading::target_log_probs)
      .def_readonly("measures", &LensReading::measures);

  m.def(
      "read_lens",
      [](const py::object& model, const Lens& lens, const torch::Tensor& tokens, std::vector<int64_t> layers,
         std::vector<int64_t> positions, bool incl_mid, int64_t top_k, std::vector<int64_t> targets,
         bool measures, const hooks::HookRegistry* hooks, int64_t memory_budget, py::object progress) {
        const auto native = native_model(model);
        analysis::LensOptions options;
        options.layers = std::move(layers);
        options.positions = std::move(positions);
        options.incl_mid = incl_mid;
        options.top_k = top_k;
        options.targets = std::move(targets);
        options.measures = measures;
        options.memory_budget = memory_budget;
        options.progress = as_shown_progress(std::move(progress));
        const auto own = hooks ? std::optional(*hooks) : std::nullopt;
        options.hooks = own ? &*own : nullptr;
        const py::gil_scoped_release release;
        return analysis::read_lens(*native, lens, tokens, options);
      },
      py::arg("model"), py::arg("lens"), py::arg("tokens"), py::kw_only(),
      py::arg("layers") = std::vector<int64_t>(), py::arg("positions") = std::vector<int64_t>(),
      py::arg("incl_mid") = false, py::arg("top_k") = 5, py::arg("targets") = std::vector<int64_t>(),
      py::arg("measures") = false, py::arg("hooks") = nullptr, py::arg("memory_budget") = int64_t{256} << 20,
      py::arg("progress") = py::none(),
      "Read a text through a lens in one forward pass: see introspect.analysis.logit_lens.");

  m.def(
      "train_tuned_lens",
      [](const py::object& model, const Texts& texts, int64_t steps, int64_t tokens_per_step, int64_t context,
         const std::string& optimizer, double lr, double momentum, double weight_decay, double clip,
         bool bias, uint64_t seed, const std::optional<Lens>& start, int64_t memory_budget,
         py::object progress, std::function<void(int64_t, torch::Tensor)> on_step) {
        const auto native = native_model(model);
        analysis::TunedLensOptions options;
        options.steps = steps;
        options.tokens_per_step = tokens_per_step;
        options.context = context;
        options.optimizer = parse_optimizer(optimizer);
        options.lr = lr;
        options.momentum = momentum;
        options.weight_decay = weight_decay;
        options.clip = clip;
        options.bias = bias;
        options.seed = seed;
        options.start = start;
        options.memory_budget = memory_budget;
        options.progress = as_shown_progress(std::move(progress));
        options.on_step = on_step;  // takes the GIL itself
        const py::gil_scoped_release release;
        return analysis::train_tuned_lens(*native, texts, options);
      },
      py::arg("model"), py::arg("texts"), py::kw_only(), py::arg("steps"), py::arg("tokens_per_step"),
      py::arg("context"), py::arg("optimizer"), py::arg("lr"), py::arg("momentum"), py::arg("weight_decay"),
      py::arg("clip"), py::arg("bias"), py::arg("seed"), py::arg("start"), py::arg("memory_budget"),
      py::arg("progress"), py::arg("on_step"), "See introspect.analysis.TunedLens.train.");
  m.def(
      "regression_lens",
      [](const py::object& model, const Texts& texts, double ridge, int64_t context, bool bias,
         py::object progress) {
        const auto native = native_model(model);
        const auto shown = as_shown_progress(std::move(progress));
        const py::gil_scoped_release release;
        return analysis::regression_lens(*native, texts, ridge, context, bias, shown);
      },
      py::arg("model"), py::arg("texts"), py::kw_only(), py::arg("ridge"), py::arg("context"),
      py::arg("bias"), py::arg("progress"), "See introspect.analysis.TunedLens.regression.");
  m.def(
      "jacobian_lens",
      [](const py::object& model, const Texts& prompts, std::vector<int64_t> layers, int64_t skip_first,
         int64_t context, int64_t directions, py::object progress) {
        const auto native = native_model(model);
        const analysis::JacobianLensOptions options{std::move(layers), skip_first, context, directions,
                                                    as_shown_progress(std::move(progress))};
        const py::gil_scoped_release release;
        return analysis::jacobian_lens(*native, prompts, options);
      },
      py::arg("model"), py::arg("prompts"), py::kw_only(), py::arg("layers"), py::arg("skip_first"),
      py::arg("context"), py::arg("directions"), py::arg("progress"),
      "See introspect.analysis.JacobianLens.compute.");
  m.def(
      "patchscope",
      [](const py::object& model, const std::vector<int64_t>& source, const std::vector<int64_t>& target,
         std::vector<int64_t> layers, std::vector<int64_t> source_positions, int64_t target_position,
         std::optional<int64_t> target_layer, int64_t read_position, int64_t memory_budget,
         py::object progress) {
        const auto native = native_model(model);
        const analysis::PatchscopeOptions options{std::move(layers),
                                                  std::move(source_positions),
                                                  target_position,
                                                  target_layer,
                                                  read_position,
                                                  memory_budget,
                                                  as_shown_progress(std::move(progress))};
        const py::gil_scoped_release release;
        return analysis::patchscope(native, source, target, options);
      },
      py::arg("model"), py::arg("source"), py::arg("target"), py::kw_only(), py::arg("layers"),
      py::arg("source_positions"), py::arg("target_position"), py::arg("target_layer"),
      py::arg("read_position"), py::arg("memory_budget"), py::arg("progress"),
      "See introspect.analysis.patchscope.");
}

}  // namespace introspect::python

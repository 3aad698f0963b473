#include "bindings.h"

#include "introspect/core/check.h"
#include "introspect/steering/control_vector.h"
#include "introspect/steering/train.h"

namespace introspect::python {
namespace {

using steering::ControlVector;
using Pairs = std::vector<std::pair<std::string, std::string>>;
using Range = std::optional<std::pair<int64_t, int64_t>>;

/// The native model of an introspect.Model.
std::shared_ptr<const models::Model> engine(const py::object& model) {
  return model.attr("engine").cast<std::shared_ptr<models::Model>>();
}

ControlVector train(const py::object& model, const Pairs& pairs, const std::string& method,
                    std::optional<std::vector<int64_t>> layers, int64_t batch_size, py::object progress) {
  steering::TrainOptions options{steering::parse_method(method), std::move(layers), batch_size,
                                 as_progress(std::move(progress))};
  const auto native = engine(model);
  std::vector<steering::TextPair> texts;
  for (const auto& [positive, negative] : pairs) texts.push_back({positive, negative});
  const py::gil_scoped_release release;
  return steering::train(*native, texts, options);
}

Pairs concept_pairs(const py::object& model, const std::string& concept_name,
                    const std::vector<std::string>& suffixes) {
  Pairs out;
  for (const auto& pair : steering::concept_pairs(*engine(model), concept_name, suffixes))
    out.emplace_back(pair.positive, pair.negative);
  return out;
}

hooks::Intervention intervention(const ControlVector& vector, const py::object& model, const Range& layers,
                                 std::pair<int64_t, std::optional<int64_t>> positions) {
  const auto own = vector.layers();
  const auto [first, last] = layers.value_or(std::pair{own.front(), own.back()});
  auto out = steering::as_intervention(vector, engine(model)->cfg().n_layers, first, last);
  out.first_position = positions.first;
  if (positions.second) out.last_position = *positions.second;
  return out;
}

std::map<int64_t, torch::Tensor> copied_directions(const ControlVector& vector) {
  auto out = vector.directions();
  for (auto& [layer, direction] : out) direction = direction.clone();
  return out;
}

std::string repr(const ControlVector& vector) {
  const auto layers = vector.layers();
  return concat("ControlVector(model_type='", vector.model_type(), "', ", layers.size(), " layers ",
                layers.front(), " to ", layers.back(), ", d_model=", vector.d_model(), ", method='",
                vector.origin().method, "')");
}

}  // namespace

void bind_steering(py::module_& m) {
  py::class_<ControlVector>(m, "ControlVector", R"doc(
One direction per layer, read at the output of block l and added to the output of block l (0-based).

A value: ``+``, ``-``, ``*``, ``/`` make new vectors, and strength is not part of it (``20 * vector`` is another vector).

Args:
    model_type: the architecture's name as in config.json ("qwen2").
    directions: {layer: tensor [d_model]}, any float dtype; float32 copies are kept.

Raises:
    ConfigError: no directions.
    IndexError: a negative layer.
    ShapeError: a direction that is not [d_model] of the others' width.
    ValueError: NaN or infinity.
)doc")
      .def(py::init([](std::string model_type, const ControlVector::Directions& directions) {
             return ControlVector(std::move(model_type), directions);
           }),
           py::arg("model_type"), py::arg("directions"))
      .def_static("train", &train, py::arg("model"), py::arg("pairs"), py::kw_only(),
                  py::arg("method") = "pca_center", py::arg("layers") = py::none(),
                  py::arg("batch_size") = 64, py::arg("progress") = py::none(), R"doc(
Trains a vector on pairs of texts that differ in what it shall stand for.

The residual stream is read at the last token of each text, after the blocks of ``layers``; nothing above the highest
is run. Each direction points from the negative to the positive side of most pairs.

Args:
    model: an introspect.Model with a tokenizer.
    pairs: (positive, negative) texts, as concept_pairs makes them.
    method: "pca_center" (first component of the pairs about their midpoints, unit length), "pca_diff" (first component
        of the differences less their mean, unit length) or "mean_diff" (mean difference, at its own length).
    layers: block numbers; None is 1 to n_layers - 1.
    batch_size: texts run side by side.
    progress: called with (what, done, total).

Raises:
    ValueError: too few pairs, an empty text, an unknown method, pairs that do not differ.
    IndexError: a layer the model does not have.
    ShapeError: a text longer than n_ctx.
    ConfigError: a model without tokenizer.
)doc")
      .def_property_readonly("model_type", &ControlVector::model_type)
      .def_property_readonly("directions", &copied_directions, "{layer: float32 [d_model]}, copies.")
      .def_property_readonly("layers", &ControlVector::layers)
      .def_property_readonly("d_model", &ControlVector::d_model)
      .def_property_readonly("model_name", [](const ControlVector& v) { return v.origin().model_name; })
      .def_property_readonly(
          "model_hash", [](const ControlVector& v) { return v.origin().model_hash; },
          "Hash of the model it was trained on; empty if unknown.")
      .def_property_readonly("method", [](const ControlVector& v) { return v.origin().method; })
      .def_property_readonly("n_pairs", [](const ControlVector& v) { return v.origin().n_pairs; })
      .def_property_readonly(
          "spectrum", [](const ControlVector& v) { return v.origin().spectrum; },
          "{layer: largest shares of variance, descending}; empty for other methods than PCA.")
      .def("__add__", &ControlVector::operator+, py::arg("other"), py::is_operator())
      .def("__sub__", py::overload_cast<const ControlVector&>(&ControlVector::operator-, py::const_),
           py::arg("other"), py::is_operator())
      .def("__neg__", py::overload_cast<>(&ControlVector::operator-, py::const_))
      .def("__mul__", &ControlVector::operator*, py::arg("factor"), py::is_operator())
      .def("__rmul__", &ControlVector::operator*, py::arg("factor"), py::is_operator())
      .def("__truediv__", &ControlVector::operator/, py::arg("divisor"), py::is_operator())
      .def("__eq__", &ControlVector::operator==, py::arg("other"), py::is_operator())
      .def("__repr__", &repr)
      .def("export_gguf", &ControlVector::export_gguf, py::arg("path"),
           py::call_guard<py::gil_scoped_release>(), R"doc(
Writes the file that repeng and llama.cpp read.

Raises:
    ConfigError: there is a direction for layer 0, which llama.cpp refuses; save_safetensors keeps it.
    IoError: the file cannot be written; none is left behind.
)doc")
      .def_static("import_gguf", &ControlVector::import_gguf, py::arg("path"),
                  py::call_guard<py::gil_scoped_release>(),
                  "Reads a control vector from GGUF, repeng's and llama.cpp's included. Raises IoError.")
      .def("save_safetensors", &ControlVector::save_safetensors, py::arg("path"),
           py::call_guard<py::gil_scoped_release>(),
           "Writes the directions and where they came from. Raises IoError.")
      .def_static("load_safetensors", &ControlVector::load_safetensors, py::arg("path"),
                  py::call_guard<py::gil_scoped_release>(),
                  "Reads what save_safetensors wrote. Raises IoError.")
      .def("save", &ControlVector::save, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
           "Writes .gguf or .safetensors, by the file's ending. Raises ValueError for any other.")
      .def_static("load", &ControlVector::load, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
                  "Reads .gguf or .safetensors, by the file's ending. Raises ValueError for any other.")
      .def("intervention", &intervention, py::arg("model"), py::kw_only(), py::arg("layers") = py::none(),
           py::arg("positions") = std::pair<int64_t, std::optional<int64_t>>(0, std::nullopt), R"doc(
The vector as something to do to a forward pass: its directions added to the outputs of a range of blocks.

Args:
    model: the introspect.Model it is for.
    layers: first and last block, both included; None is every layer the vector has.
    positions: [first, last) positions that are steered; None is open.

Raises:
    IndexError: a layer the model does not have.
    ConfigError: the vector has no direction in the range.
)doc");

  m.def("concept_pairs", &concept_pairs, py::arg("model"), py::arg("concept"), py::arg("suffixes"), R"doc(
The text pairs of the introspection experiments: "Please talk about {concept}." against "Please talk about anything.",
with an empty system message, each suffix being the start of the assistant's answer.

Args:
    model: an introspect.Model with a tokenizer and a chat template.
    concept: a word.
    suffixes: see introspect.load_suffixes.

Returns:
    (positive, negative) texts, one pair a suffix.

Raises:
    ValueError: an empty concept or no suffixes.
    ConfigError: the model has no tokenizer or chat template.
)doc");
  m.def("random_rotation", &steering::random_rotation, py::arg("vector"), py::kw_only(), py::arg("seed"),
        py::call_guard<py::gil_scoped_release>(), R"doc(
The vector under one random orthogonal map of the residual stream: the null for "any vector of this shape".

All layers go through the same map, so every norm and every cosine between layers stays.
)doc");
}

}  // namespace introspect::python

#include "bindings.h"

#include "introspect/core/check.h"
#include "introspect/models/model.h"
#include "introspect/steering/control_vector.h"
#include "introspect/steering/diagnostics.h"
#include "introspect/steering/directions.h"
#include "native_model.h"
#include "value_type.h"

namespace introspect::python {

void bind_training(py::module_& m);  // the other half of the module, in bind_training.cpp

namespace {

using steering::ControlVector;
using Range = std::optional<std::pair<int64_t, int64_t>>;

hooks::Intervention intervention(const ControlVector& vector, const py::object& model, const Range& layers,
                                 std::pair<int64_t, std::optional<int64_t>> positions) {
  const auto own = vector.layers();
  const auto [first, last] = layers.value_or(std::pair{own.front(), own.back()});
  auto out = steering::as_intervention(vector, native_model(model)->cfg().n_layers, first, last);
  out.first_position = positions.first;
  if (positions.second) out.last_position = *positions.second;
  return out;
}

std::map<int64_t, torch::Tensor> copied_directions(const ControlVector& vector) {
  auto out = vector.directions();
  for (auto& [layer, direction] : out) direction = direction.clone();
  return out;
}

torch::Tensor direction_of_pairs(const torch::Tensor& positive, const torch::Tensor& negative,
                                 const std::string& method, uint64_t seed) {
  return steering::direction_of_pairs(positive, negative, steering::parse_method(method), nullptr, seed);
}

steering::LayerDiagnostics diagnose(const torch::Tensor& positive, const torch::Tensor& negative,
                                    const torch::Tensor& direction, const std::string& method, int64_t folds,
                                    uint64_t seed) {
  return steering::diagnose(positive, negative, direction, steering::parse_method(method), folds, seed);
}

/// A vector and where it came from, in the order of VectorOrigin's fields.
using State = std::tuple<std::string, ControlVector::Directions, std::string, std::string, std::string,
                         int64_t, std::map<int64_t, std::vector<double>>, int64_t,
                         std::map<int64_t, steering::LayerDiagnostics>, std::string, std::string, bool>;

State state_of(const ControlVector& v) {
  const auto& o = v.origin();
  return {v.model_type(), v.directions(), o.model_name,    o.model_hash,
          o.method,       o.n_pairs,      o.spectrum,      o.folds,
          o.diagnostics,  o.point,        o.read_position, o.last_layer_after_norm};
}

ControlVector from_state(const State& state) {
  const auto& [type, directions, name, hash, method, n_pairs, spectrum, folds, diagnostics, point, position,
               after_norm] = state;
  return {type,
          directions,
          {name, hash, method, n_pairs, spectrum, folds, diagnostics, point, position, after_norm}};
}

std::string repr(const ControlVector& vector) {
  const auto layers = vector.layers();
  return concat("ControlVector(model_type='", vector.model_type(), "', ", layers.size(), " layers ",
                layers.front(), " to ", layers.back(), ", d_model=", vector.d_model(), ", method='",
                vector.origin().method, "')");
}

}  // namespace

void bind_steering(py::module_& m) {
  using steering::LayerDiagnostics;
  using Figures = std::tuple<double, double, std::optional<double>, std::optional<double>>;
  py::class_<LayerDiagnostics> diagnostics(m, "LayerDiagnostics", R"doc(
How well one layer's direction tells the two sides of its pairs apart.
)doc");
  copy_as_value(diagnostics);
  diagnostics
      .def(py::pickle(
          [](const LayerDiagnostics& d) {
            return Figures(d.explained_variance, d.sign_agreement, d.accuracy, d.auc);
          },
          [](const Figures& state) {
            const auto& [explained, agreement, accuracy, auc] = state;
            return LayerDiagnostics{explained, agreement, accuracy, auc};
          }))
      .def_readonly("explained_variance", &steering::LayerDiagnostics::explained_variance,
                    "Share of the differences' second moment that lies along the direction.")
      .def_readonly("sign_agreement", &steering::LayerDiagnostics::sign_agreement,
                    "Share of the pairs that project in the direction's order.")
      .def_readonly(
          "accuracy", &steering::LayerDiagnostics::accuracy,
          "Share of held-out activations on their side of the training sides' middle; None if unknown.")
      .def_readonly("auc", &steering::LayerDiagnostics::auc,
                    "Probability that a held-out positive projects above a negative; None if unknown.")
      .def("__repr__", [](const steering::LayerDiagnostics& one) {
        const auto text = [](const std::optional<double>& x) { return x ? concat(*x) : std::string("None"); };
        return concat("LayerDiagnostics(explained_variance=", one.explained_variance,
                      ", sign_agreement=", one.sign_agreement, ", accuracy=", text(one.accuracy),
                      ", auc=", text(one.auc), ")");
      });

  py::class_<ControlVector> type(m, "ControlVector", R"doc(
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
)doc");
  copy_as_value(type);
  type.def(py::pickle(&state_of, &from_state));
  type.def(py::init([](std::string model_type, const ControlVector::Directions& directions) {
             return ControlVector(std::move(model_type), directions);
           }),
           py::arg("model_type"), py::arg("directions"))
      .def_property_readonly("model_type", &ControlVector::model_type)
      .def_property_readonly("directions", &copied_directions, "{layer: float32 [d_model]}, copies.")
      .def_property_readonly("layers", &ControlVector::layers)
      .def_property_readonly("d_model", &ControlVector::d_model)
      .def_property_readonly("model_name", [](const ControlVector& v) { return v.origin().model_name; })
      .def_property_readonly(
          "model_hash", [](const ControlVector& v) { return v.origin().model_hash; },
          "Hash of the model it was trained on; empty if unknown.")
      .def_property_readonly(
          "concept", [](const ControlVector& v) { return v.origin().concept_name; },
          "What it stands for, as train_many and train_words were told; empty if unknown.")
      .def_property_readonly("method", [](const ControlVector& v) { return v.origin().method; })
      .def_property_readonly("n_pairs", [](const ControlVector& v) { return v.origin().n_pairs; })
      .def_property_readonly(
          "point", [](const ControlVector& v) { return v.origin().point; },
          "The hook point of a block where it was read; empty if unknown.")
      .def_property_readonly(
          "read_position", [](const ControlVector& v) { return v.origin().read_position; },
          "The tokens it was read at: \"-1\", \"mean 2:5\"; empty if unknown.")
      .def_property_readonly(
          "last_layer_after_norm", [](const ControlVector& v) { return v.origin().last_layer_after_norm; },
          "Whether the last layer was read after the final norm.")
      .def_property_readonly(
          "spectrum", [](const ControlVector& v) { return v.origin().spectrum; },
          "{layer: largest shares of variance, descending}; empty for other methods than PCA.")
      .def_property_readonly(
          "diagnostics", [](const ControlVector& v) { return v.origin().diagnostics; },
          "{layer: LayerDiagnostics} of the pairs it was trained on; empty if unknown.")
      .def_property_readonly(
          "folds", [](const ControlVector& v) { return v.origin().folds; },
          "Parts of the pairs that ``diagnostics`` held out one by one: pair i is in part i mod folds; 0 if "
          "none.")
      .def_property_readonly("norms", &ControlVector::norms, "{layer: length of the direction}.")
      .def("cosine", &ControlVector::cosine, py::arg("other"),
           "{layer: cosine} for every layer both have; NaN where one is zero. Raises ShapeError for other "
           "widths.")
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

  m.def("random_rotation", &steering::random_rotation, py::arg("vector"), py::kw_only(), py::arg("seed"),
        py::call_guard<py::gil_scoped_release>(), R"doc(
The vector under one random orthogonal map of the residual stream: the null for "any vector of this shape".

All layers go through the same map, so every norm and every cosine between layers stays.
)doc");
  m.def("random_directions", &steering::random_directions, py::arg("vector"), py::kw_only(), py::arg("seed"),
        py::call_guard<py::gil_scoped_release>(),
        "Independent random directions of the lengths the vector's have, uniform on each layer's sphere.");
  m.def("direction_of_pairs", &direction_of_pairs, py::arg("positive"), py::arg("negative"), py::kw_only(),
        py::arg("method") = "pca_center", py::arg("seed") = 0, py::call_guard<py::gil_scoped_release>(),
        R"doc(
One layer's direction from activations of pairs, pointing from negative to positive, in double precision inside.

The principal components have length 1 and the sign under which most pairs project in order (repeng's vote).

Args:
    positive: [pairs, d_model], any float dtype.
    negative: [pairs, d_model], row by row the other side of ``positive``.
    method: what becomes the direction:
        "pca_center": first component of the pairs about their midpoints (repeng's pca_center);
        "pca_global_center": of all activations less their common mean (activation-steering's pca_center);
        "pca_diff": of the differences less their mean (repeng's default);
        "pca_diff_uncentered": of the differences about zero (llama.cpp, steering-vectors), equal to "pca_center";
        "lat": of the differences of activations paired at random (Zou et al. 2023, arXiv:2310.01405);
        "mean_diff": mean of the differences, at its own length (Rimsky et al. 2023, arXiv:2312.06681);
        "logistic": weights of a logistic regression, of length 1 (scikit-learn's LogisticRegression with C = 1).
    seed: of the pairing of "lat".

Returns:
    float32 [d_model].

Raises:
    ShapeError: sides of unequal count or width, or not float matrices.
    ValueError: an unknown method, activations that are not finite, pairs that do not differ.
)doc");
  m.def("diagnose", &diagnose, py::arg("positive"), py::arg("negative"), py::arg("direction"), py::kw_only(),
        py::arg("method") = "pca_center", py::arg("folds") = 2, py::arg("seed") = 0,
        py::call_guard<py::gil_scoped_release>(), R"doc(
Judges a direction of pairs: explained variance and sign agreement on these pairs, accuracy and AUC on held-out ones.

Pair i is in fold i mod ``folds``; each fold is judged by the direction that ``method`` finds for all other pairs.

Args:
    positive: [pairs, d_model].
    negative: [pairs, d_model].
    direction: [d_model], what direction_of_pairs gave.
    method: the same as for direction_of_pairs.
    folds: 2 or more; 0 leaves accuracy and auc None, and so do fewer than two pairs a fold.
    seed: of "lat".

Returns:
    LayerDiagnostics.

Raises:
    ShapeError: other shapes.
    ValueError: one fold, or a negative number.
)doc");
  bind_training(m);
}

}  // namespace introspect::python

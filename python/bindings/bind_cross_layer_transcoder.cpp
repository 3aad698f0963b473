#include "bindings.h"

#include "introspect/core/check.h"
#include "introspect/sae/cross_layer_transcoder.h"
#include "value_type.h"

namespace introspect::python {
namespace {

using sae::CrossLayerTranscoder;
using sae::Dictionary;
using sae::DictionaryOrigin;
using sae::SparseFeatures;
using Optional = std::optional<torch::Tensor>;

Optional given(const torch::Tensor& t) {
  return t.defined() ? Optional(t) : std::nullopt;
}

CrossLayerTranscoder make(std::vector<Dictionary> layers, const Optional& b_dec, const Optional& W_skip,
                          DictionaryOrigin origin) {
  return {std::move(layers), b_dec.value_or(torch::Tensor{}), W_skip.value_or(torch::Tensor{}),
          std::move(origin)};
}

/// The arguments of `make`.
using State = std::tuple<std::vector<Dictionary>, Optional, Optional, DictionaryOrigin>;

State state_of(const CrossLayerTranscoder& c) {
  return {c.layers(), given(c.b_dec()), given(c.W_skip()), c.origin()};
}

torch::Tensor decode(const CrossLayerTranscoder& c, const torch::Tensor& f, const Optional& x) {
  return c.decode(f, x.value_or(torch::Tensor{}));
}

torch::Tensor decode_sparse(const CrossLayerTranscoder& c, const std::vector<SparseFeatures>& f,
                            const Optional& x) {
  return c.decode(f, x.value_or(torch::Tensor{}));
}

}  // namespace

void bind_cross_layer_transcoder(py::module_& m) {
  py::class_<CrossLayerTranscoder> type(m, "CrossLayerTranscoder", R"doc(
Features of each layer that write what leaves the MLPs of that layer and of those above.

Args:
    layers: one Dictionary a layer; layer l of L writes (L - l) outputs side by side. No b_dec, skip or input norm.
    b_dec: [L, d_out]; None is zero.
    W_skip: [L, d_out, d_in]; None is none.
    origin: L sites in and out, in order, or none.

Raises:
    ShapeError, ConfigError: what does not fit.
    ValueError: numbers that are not finite.
)doc");
  copy_as_value(type);
  type.def(py::init<const CrossLayerTranscoder&>(), py::arg("transcoder"), "The same; tensors are shared.")
      .def(py::init(&make), py::arg("layers"), py::arg("b_dec") = py::none(), py::arg("W_skip") = py::none(),
           py::kw_only(), py::arg_v("origin", DictionaryOrigin{}, "DictionaryOrigin()"),
           py::call_guard<py::gil_scoped_release>())
      .def(py::pickle(&state_of, [](const State& state) { return std::apply(make, state); }))
      .def_property_readonly("layers", &CrossLayerTranscoder::layers, "One Dictionary a layer.")
      .def_property_readonly("n_layers", &CrossLayerTranscoder::n_layers)
      .def_property_readonly("d_in", &CrossLayerTranscoder::d_in)
      .def_property_readonly("d_out", &CrossLayerTranscoder::d_out)
      .def_property_readonly("d_sae", &CrossLayerTranscoder::d_sae, "Features of a layer.")
      .def_property_readonly("dtype", &CrossLayerTranscoder::dtype)
      .def_property_readonly("device", &CrossLayerTranscoder::device)
      .def_property_readonly("origin", &CrossLayerTranscoder::origin)
      .def_property_readonly(
          "b_dec", [](const CrossLayerTranscoder& c) { return given(c.b_dec()); },
          "[L, d_out]; None is zero.")
      .def_property_readonly(
          "W_skip", [](const CrossLayerTranscoder& c) { return given(c.W_skip()); },
          "[L, d_out, d_in] or None.")
      .def_property_readonly(
          "hash",
          [](const CrossLayerTranscoder& c) {
            const py::gil_scoped_release release;
            return c.hash();
          },
          "Hex SHA-256 of what it computes.")
      .def("W_dec", &CrossLayerTranscoder::W_dec, py::arg("layer"),
           "What the features of a layer write, [d_sae, L - layer, d_out]. Raises IndexError.")
      .def("encode", &CrossLayerTranscoder::encode, py::arg("x"), py::call_guard<py::gil_scoped_release>(),
           "Features [L, .., d_sae] of x [L, .., d_in]. Raises ShapeError.")
      .def("encode_sparse", &CrossLayerTranscoder::encode_sparse, py::arg("x"),
           py::call_guard<py::gil_scoped_release>(),
           "Those that are not 0, one SparseFeatures a layer, of x [L, N, d_in]. No gradients. Raises "
           "ShapeError.")
      .def("decode", &decode, py::arg("f"), py::arg("x") = py::none(),
           py::call_guard<py::gil_scoped_release>(),
           R"doc(
y [L, .., d_out] of features [L, .., d_sae].

Args:
    f: any floating dtype.
    x: [L, .., d_in], what f is of: needed with W_skip.

Raises:
    ShapeError: of other shapes.
    ValueError: x is needed.
)doc")
      .def("decode", &decode_sparse, py::arg("f"), py::arg("x") = py::none(),
           py::call_guard<py::gil_scoped_release>(), "The same of one SparseFeatures a layer: [L, N, d_out].")
      .def("__call__", &CrossLayerTranscoder::forward, py::arg("x"), py::call_guard<py::gil_scoped_release>(),
           "decode(encode(x)): [L, .., d_out]. Raises ShapeError.")
      .def("to", py::overload_cast<torch::ScalarType>(&CrossLayerTranscoder::to, py::const_),
           py::arg("dtype"), py::call_guard<py::gil_scoped_release>())
      .def("to", py::overload_cast<torch::Device>(&CrossLayerTranscoder::to, py::const_), py::arg("device"),
           py::call_guard<py::gil_scoped_release>())
      .def("fold_decoder_norm", &CrossLayerTranscoder::fold_decoder_norm,
           py::call_guard<py::gil_scoped_release>())
      .def(
          "__eq__",
          [](const CrossLayerTranscoder& a, const CrossLayerTranscoder& b) { return a.hash() == b.hash(); },
          py::is_operator(), py::call_guard<py::gil_scoped_release>())
      .def("__hash__", [](const CrossLayerTranscoder& c) { return std::hash<std::string>()(c.hash()); });
}

}  // namespace introspect::python

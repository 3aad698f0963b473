#include "bindings.h"

#include "introspect/circuits/qk_attribution.h"
#include "introspect/models/model.h"
#include "transcoder_input.h"

namespace introspect::python {

namespace {

using circuits::GraphNode;
using circuits::QkPart;
using models::Model;
using NoGil = py::call_guard<py::gil_scoped_release>;

const char* name_of(QkPart::Kind kind) {
  switch (kind) {
    case QkPart::Kind::feature:
      return "feature";
    case QkPart::Kind::error:
      return "error";
    case QkPart::Kind::attention:
      return "attention";
    case QkPart::Kind::token:
      return "token";
    case QkPart::Kind::bias:
      return "bias";
  }
  throw std::logic_error("a part without a name");
}

using Layers = std::map<int64_t, sae::Dictionary>;
using CrossLayer = std::optional<sae::CrossLayerTranscoder>;
using Saes = std::vector<sae::Dictionary>;

}  // namespace

void bind_qk_attribution(py::module_& m) {
  py::class_<QkPart>(m, "QkPart", R"doc(
A part of the stream that a head reads at one position: ``kind`` (feature, error, attention, token, bias), ``layer``,
``feature`` and ``value`` (its activation), ``site`` (of features and errors: attention, mlp, residual).
)doc")
      .def_property_readonly("kind", [](const QkPart& part) { return name_of(part.kind); })
      .def_property_readonly("site", [](const QkPart& part) { return circuits::to_string(part.site); })
      .def_readonly("layer", &QkPart::layer)
      .def_readonly("feature", &QkPart::feature)
      .def_readonly("value", &QkPart::value)
      .def("__repr__", [](const QkPart& part) {
        return std::string("QkPart(") + name_of(part.kind) + ", layer=" + std::to_string(part.layer) +
               ", feature=" + std::to_string(part.feature) + ")";
      });
  py::class_<circuits::QkAttribution>(m, "QkAttribution", "See introspect.circuits.qk_attribution.")
      .def_readonly("layer", &circuits::QkAttribution::layer)
      .def_readonly("head", &circuits::QkAttribution::head)
      .def_readonly("query", &circuits::QkAttribution::query)
      .def_readonly("key", &circuits::QkAttribution::key)
      .def_readonly("query_parts", &circuits::QkAttribution::query_parts)
      .def_readonly("key_parts", &circuits::QkAttribution::key_parts)
      .def_readonly("terms", &circuits::QkAttribution::terms)
      .def_readonly("score", &circuits::QkAttribution::score)
      .def_readonly("pattern", &circuits::QkAttribution::pattern)
      .def_readonly("soft_cap", &circuits::QkAttribution::soft_cap);
  py::class_<circuits::HeadLoadings>(m, "HeadLoadings", "See introspect.circuits.head_loadings.")
      .def_readonly("layers", &circuits::HeadLoadings::layers)
      .def_readonly("heads", &circuits::HeadLoadings::heads)
      .def_readonly("past_attention", &circuits::HeadLoadings::past_attention)
      .def_readonly("edge", &circuits::HeadLoadings::edge);

  m.def(
      "qk_attribution",
      [](const std::shared_ptr<Model>& model, const torch::Tensor& tokens, int64_t layer, int64_t head,
         int64_t query, int64_t key, Layers layers, CrossLayer cross_layer, Saes saes,
         const std::optional<std::string>& input, bool mask_first) {
        return circuits::qk_attribution(
            *model, tokens, layer, head, query, key,
            {std::move(layers), std::move(cross_layer), parse_input(input), "", std::move(saes)}, mask_first);
      },
      py::arg("model"), py::arg("tokens"), py::arg("layer"), py::arg("head"), py::arg("query"),
      py::arg("key"), py::kw_only(), py::arg("transcoders"), py::arg("cross_layer") = py::none(),
      py::arg("saes") = Saes{}, py::arg("input") = py::none(), py::arg("mask_first") = true, NoGil(),
      "See introspect.circuits.qk_attribution.");
  m.def(
      "head_loadings",
      [](const std::shared_ptr<Model>& model, const torch::Tensor& tokens, const GraphNode& source,
         const GraphNode& target, Layers layers, CrossLayer cross_layer, Saes saes,
         const std::optional<std::string>& input, bool mask_first) {
        return circuits::head_loadings(
            *model, tokens,
            {std::move(layers), std::move(cross_layer), parse_input(input), "", std::move(saes)}, source,
            target, mask_first);
      },
      py::arg("model"), py::arg("tokens"), py::arg("source"), py::arg("target"), py::kw_only(),
      py::arg("transcoders"), py::arg("cross_layer") = py::none(), py::arg("saes") = Saes{},
      py::arg("input") = py::none(), py::arg("mask_first") = true, NoGil(),
      "See introspect.circuits.head_loadings.");
}

}  // namespace introspect::python

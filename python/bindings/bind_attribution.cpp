#include "bindings.h"

#include "introspect/analysis/attribution.h"
#include "introspect/analysis/prediction.h"

namespace introspect::python {

namespace {

using analysis::Attribution;
using analysis::NamedActivations;
using analysis::Prediction;
using models::Model;
using MaybeTensor = std::optional<torch::Tensor>;

analysis::Unit parse_unit(const std::string& unit) {
  if (unit == "layer") return analysis::Unit::kLayer;
  if (unit == "component") return analysis::Unit::kComponent;
  if (unit == "head") return analysis::Unit::kHead;
  if (unit == "neuron") return analysis::Unit::kNeuron;
  throw std::invalid_argument(
      "direct_logit_attribution: unit must be 'layer', 'component', 'head' or 'neuron', got '" + unit + "'");
}

}  // namespace

void bind_attribution(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<Attribution>(m, "Attribution", "What each part of a model adds to logits.")
      .def_readonly("labels", &Attribution::labels)
      .def_readonly("values", &Attribution::values, "[parts, batch, n].")
      .def_readonly("logits", &Attribution::logits, "[batch, n], what the parts sum to, before a soft cap.");
  py::class_<Prediction>(m, "Prediction", "Why a model prefers one token to another.")
      .def_readonly("exact", &Prediction::exact, "The Attribution of the difference by component.")
      .def_readonly("naive", &Prediction::naive, "[components], each with a norm of its own.")
      .def_readonly("streams", &Prediction::streams, "Labels of the residual streams.")
      .def_readonly("logits", &Prediction::logits,
                    "[streams, 2], expected and actual through the logit lens.")
      .def_readonly("log_probs", &Prediction::log_probs, "[streams, 2], in nats.")
      .def_readonly("ranks", &Prediction::ranks, "int64 [streams, 2], tokens with a larger logit.")
      .def_readonly("turn", &Prediction::turn,
                    "The last stream in which the expected token was not behind, or None.");
  m.def(
      "attribution_points",
      [](const Model& model, const std::string& unit) {
        return analysis::attribution_points(model, parse_unit(unit));
      },
      py::arg("model"), py::arg("unit") = "component",
      "The hook names that direct_logit_attribution needs, at the positions that are asked about.");
  m.def("prediction_points", &analysis::prediction_points, py::arg("model"),
        "The hook names that debug_prediction needs beside attribution_points.");
  m.def(
      "direct_logit_attribution",
      [](const Model& model, const NamedActivations& activations, const torch::Tensor& tokens,
         const MaybeTensor& wrong, const std::string& unit) {
        return analysis::direct_logit_attribution(model, activations, tokens, wrong.value_or(torch::Tensor{}),
                                                  parse_unit(unit));
      },
      py::arg("model"), py::arg("activations"), py::arg("tokens"), py::kw_only(),
      py::arg("wrong") = py::none(), py::arg("unit") = "component", release, R"doc(
What each part of a model adds to the logits of tokens: see introspect.analysis.direct_logit_attribution.

Args:
    activations: full hook name -> [batch, 1, ...], of one position of every row.
    tokens: int64 [batch, n].
    wrong: of the same shape; their logits are subtracted.

Raises:
    HookError: an activation that is needed is not there.
    ShapeError: other shapes.
    IndexError: tokens outside the vocabulary.
)doc");
  m.def("debug_prediction", &analysis::debug_prediction, py::arg("model"), py::arg("activations"),
        py::arg("expected"), py::arg("actual"), release,
        "A Prediction from the activations of one position of one text: see "
        "introspect.analysis.debug_prediction.");
}

}  // namespace introspect::python

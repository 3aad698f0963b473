#include "bindings.h"

#include "introspect/analysis/metric.h"

namespace introspect::python {

using analysis::Metric;
using analysis::MetricTerm;

void bind_metrics(py::module_& m) {
  py::class_<MetricTerm>(m, "MetricTerm", R"doc(
One number of a run's logits at one position: see introspect.LogitDifference and its neighbours.

Args:
    kind: logit_difference, log_probability, probability, probability_difference, rank, accuracy, divergence or
        js_divergence.
    right, wrong: token ids.
    position: of the prompt; a negative one counts from its end.
    reference: logits or log-probabilities [d_vocab] of the divergences; None: those of the clean run.
    weight: in the sum that a metric is.

Raises:
    ValueError: an unknown kind.
)doc")
      .def(py::init([](const std::string& kind, std::vector<int64_t> right, std::vector<int64_t> wrong,
                       int64_t position, const std::optional<torch::Tensor>& reference, double weight) {
             return MetricTerm{analysis::metric_kind(kind),
                               std::move(right),
                               std::move(wrong),
                               position,
                               reference.value_or(torch::Tensor{}),
                               weight};
           }),
           py::arg("kind"), py::arg("right") = std::vector<int64_t>(),
           py::arg("wrong") = std::vector<int64_t>(), py::kw_only(), py::arg("position") = -1,
           py::arg("reference") = py::none(), py::arg("weight") = 1.0)
      .def_property_readonly("kind", [](const MetricTerm& term) { return analysis::metric_name(term.kind); })
      .def_readonly("right", &MetricTerm::right)
      .def_readonly("wrong", &MetricTerm::wrong)
      .def_readonly("position", &MetricTerm::position)
      .def_readonly("weight", &MetricTerm::weight);

  py::class_<Metric>(m, "Metric", "A metric of one prompt's run: the weighted sum of its terms.")
      .def(py::init<std::vector<MetricTerm>>(), py::arg("terms"))
      .def_readonly("terms", &Metric::terms)
      .def(
          "reads",
          [](const Metric& self, int64_t n_tokens, int64_t d_vocab) {
            const auto reads = analysis::reads_of(self, n_tokens, d_vocab);
            const auto ids = reads.vocab_ids.defined() ? py::cast(reads.vocab_ids) : py::none();
            return py::make_tuple(reads.positions, ids, reads.needs_reference);
          },
          py::arg("n_tokens"), py::arg("d_vocab"), R"doc(
(positions, vocab_ids, needs_reference): what is read of a run of n_tokens; vocab_ids None: the whole vocabulary.

Raises:
    ValueError: no terms, or tokens that are missing or not used.
    IndexError: tokens or positions that are not there.
)doc")
      .def(
          "evaluate",
          [](const Metric& self, const torch::Tensor& logits, int64_t n_tokens, int64_t d_vocab,
             const std::optional<torch::Tensor>& reference) {
            return analysis::evaluate(self, analysis::reads_of(self, n_tokens, d_vocab), logits,
                                      reference.value_or(torch::Tensor{}));
          },
          py::arg("logits"), py::kw_only(), py::arg("n_tokens"), py::arg("d_vocab"),
          py::arg("reference") = py::none(), py::call_guard<py::gil_scoped_release>(),
          "The metric of logits [..., P, n] at the positions and rows that ``reads`` names: [...].")
      .def(
          "of_logits",
          [](const Metric& self, const torch::Tensor& logits, const std::optional<torch::Tensor>& reference) {
            return analysis::of_logits(self, logits, reference.value_or(torch::Tensor{}));
          },
          py::arg("logits"), py::arg("reference") = py::none(), py::call_guard<py::gil_scoped_release>(),
          R"doc(
The metric of a prompt's logits [..., pos, d_vocab]; gradients flow through all kinds but rank and accuracy.

Args:
    reference: the clean run's logits [pos, d_vocab], of divergences that have none of their own.

Returns:
    [...], in the dtype of the logits.

Raises:
    ValueError: no terms, tokens that are missing or not used, or a reference that is needed and not there.
    IndexError: tokens or positions that are not there.
    ShapeError: logits or references of other shapes.
)doc");
}

}  // namespace introspect::python

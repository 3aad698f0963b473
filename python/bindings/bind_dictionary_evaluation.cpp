#include "bindings.h"

#include "introspect/core/check.h"
#include "introspect/sae/evaluation.h"
#include "native_model.h"

namespace introspect::python {
namespace {

using namespace sae;
using OptionalTensor = std::optional<torch::Tensor>;

torch::Tensor or_none(const OptionalTensor& tensor) {
  return tensor.value_or(torch::Tensor());
}

DictionaryEvaluation evaluate_on(const py::object& model, const Dictionary& dictionary,
                                 const torch::Tensor& tokens, const OptionalTensor& lengths,
                                 std::vector<int64_t> special_tokens, bool spliced, int64_t batch_tokens,
                                 py::object progress) {
  const auto native = native_model(model);
  const EvaluationOptions options{spliced, batch_tokens, as_shown_progress(std::move(progress))};
  const py::gil_scoped_release release;
  return evaluate(*native, dictionary, {tokens, or_none(lengths), std::move(special_tokens)}, options);
}

void bind_figures(py::module_& m) {
  using R = ReconstructionFigures;
  py::class_<R>(m, "ReconstructionFigures", R"doc(
How well a dictionary gives back what it should, and with how many features.

y is what it should give (what stands at a transcoder's output), y' what it gives, r = y - y', E the mean over rows.
)doc")
      .def_readonly("rows", &R::rows)
      .def_readonly("mse", &R::mse, "E|r|^2, summed over dimensions.")
      .def_readonly("explained_variance", &R::explained_variance,
                    "1 - E|r|^2 / (E|y|^2 - |E y|^2); NaN where y does not vary.")
      .def_readonly("explained_variance_legacy", &R::explained_variance_legacy,
                    "E(1 - |r|^2 / |y - mean of its batch|^2): SAELens's until May 2025 and SAEBench's.")
      .def_readonly("fraction_of_variance_explained", &R::fraction_of_variance_explained,
                    "1 - Var r / Var y: dictionary_learning's, blind to a constant error.")
      .def_readonly("cosine", &R::cosine, "E cos(y, y').")
      .def_readonly("l2_norm_in", &R::l2_norm_in, "E|y|.")
      .def_readonly("l2_norm_out", &R::l2_norm_out, "E|y'|.")
      .def_readonly("l2_ratio", &R::l2_ratio, "E(|y'| / |y|): below 1 is shrinkage.")
      .def_readonly("relative_reconstruction_bias", &R::relative_reconstruction_bias, "E|y'|^2 / E(y.y').")
      .def_readonly("l0", &R::l0, "Features that are not 0, a row.")
      .def_readonly("l1", &R::l1, "Sum of |f|, a row.")
      .def_readonly("dead_share", &R::dead_share, "Share of the features that were 0 in all rows.")
      .def_property_readonly(
          "density", [](const R& r) { return r.density_F; },
          "float64 [d_sae]: share of the rows in which a feature is not 0.")
      .def_property_readonly(
          "mean_active", [](const R& r) { return r.mean_active_F; },
          "float64 [d_sae]: mean where it is not 0; 0 for dead ones.")
      .def_property_readonly(
          "max_active", [](const R& r) { return r.max_active_F; }, "float64 [d_sae]: largest |f|.")
      .def("__repr__", [](const R& r) {
        return concat("ReconstructionFigures(explained_variance=", r.explained_variance, ", l0=", r.l0,
                      ", dead_share=", r.dead_share, ", rows=", r.rows, ")");
      });

  using S = SpliceFigures;
  py::class_<S>(m, "SpliceFigures",
                "The model's loss and its distance from itself with a dictionary in it: nats a token.")
      .def_readonly("tokens", &S::tokens)
      .def_readonly("ce", &S::ce, "Of the model as it is.")
      .def_readonly("ce_spliced", &S::ce_spliced, "With what the dictionary gives.")
      .def_readonly("ce_zero", &S::ce_zero, "With zeros there.")
      .def_readonly("kl_spliced", &S::kl_spliced, "KL(model || with the dictionary).")
      .def_readonly("kl_zero", &S::kl_zero, "KL(model || with zeros).")
      .def_property_readonly("ce_score", &S::ce_score, "(ce_zero - ce_spliced) / (ce_zero - ce).")
      .def_property_readonly("kl_score", &S::kl_score, "(kl_zero - kl_spliced) / kl_zero.")
      .def("__repr__", [](const S& s) {
        return concat("SpliceFigures(ce=", s.ce, ", ce_spliced=", s.ce_spliced, ", ce_zero=", s.ce_zero,
                      ", kl_spliced=", s.kl_spliced, ", tokens=", s.tokens, ")");
      });
  py::class_<DictionaryEvaluation>(m, "DictionaryEvaluation", "What evaluate_dictionary returns.")
      .def_readonly("reconstruction", &DictionaryEvaluation::reconstruction)
      .def_readonly("splice", &DictionaryEvaluation::splice, "None unless asked for.");
}

}  // namespace

void bind_dictionary_evaluation(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  bind_figures(m);
  py::class_<ReconstructionStatistics>(m, "ReconstructionStatistics", R"doc(
The sums that ReconstructionFigures are made of, in float64, over rows that come in any number of batches.
)doc")
      .def(py::init<int64_t, int64_t>(), py::arg("d_sae"), py::arg("d_out"))
      .def(
          "add",
          [](ReconstructionStatistics& s, const Dictionary& dictionary, const torch::Tensor& x,
             const OptionalTensor& y) { s.add(dictionary, x, or_none(y)); },
          py::arg("dictionary"), py::arg("x"), py::arg("y") = py::none(), release, R"doc(
Rows x [N, d_in] through the dictionary, compared with y [N, d_out]; None: with x.

Raises:
    ShapeError: rows of other widths.
    ValueError: rows that are not finite.
)doc")
      .def("figures", &ReconstructionStatistics::figures, release,
           "Raises ValueError if no rows were added.");
  m.def("evaluate_dictionary", &evaluate_on, py::arg("model"), py::arg("dictionary"), py::arg("tokens"),
        py::kw_only(), py::arg("lengths") = py::none(), py::arg("special_tokens") = std::vector<int64_t>(),
        py::arg("spliced") = true, py::arg("batch_tokens") = EvaluationOptions{}.batch_tokens,
        py::arg("progress") = py::none(), R"doc(
A dictionary at its place in a model, on token contexts: see introspect.sae.evaluate.

Args:
    tokens: int64 [contexts, tokens].
    lengths: int64 [contexts], of each; the rest is padding.
    special_tokens: ids that are run, and neither replaced nor counted.
    spliced: also the model's losses with the dictionary in it.
    batch_tokens: of a pass.
)doc");
}

}  // namespace introspect::python

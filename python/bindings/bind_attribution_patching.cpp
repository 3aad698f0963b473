#include "bindings.h"

#include "introspect/analysis/attribution_patching.h"

namespace introspect::python {
namespace {

using analysis::AttributionPatching;
using analysis::AttributionPatchingOptions;
using ModelHandle = std::shared_ptr<models::Model>;

}  // namespace

void bind_attribution_patching(py::module_& m) {
  py::class_<AttributionPatching::AtPoint>(m, "AttributionAtPoint", "Estimates at one point, [pairs, axes].")
      .def_readonly("point", &AttributionPatching::AtPoint::point)
      .def_readonly("values", &AttributionPatching::AtPoint::values)
      .def_readonly("axes", &AttributionPatching::AtPoint::axes);
  py::class_<AttributionPatching>(m, "AttributionPatching", "See analysis.attribution_patch.")
      .def_readonly("points", &AttributionPatching::points)
      .def_readonly("to", &AttributionPatching::to)
      .def_readonly("from_", &AttributionPatching::from);
  m.def(
      "attribution_patching",
      [](const ModelHandle& model, const std::vector<analysis::PatchPair>& pairs,
         std::vector<std::string> points, bool correct_qk, bool grad_drop, bool sum_positions,
         bool reference_is_to, int64_t memory_budget, py::object progress) {
        const AttributionPatchingOptions options{std::move(points),
                                                 correct_qk,
                                                 grad_drop,
                                                 sum_positions,
                                                 reference_is_to,
                                                 memory_budget,
                                                 as_shown_progress(std::move(progress))};
        const py::gil_scoped_release release;
        return analysis::attribution_patching(model, pairs, options);
      },
      py::arg("model"), py::arg("pairs"), py::kw_only(), py::arg("points"), py::arg("correct_qk") = false,
      py::arg("grad_drop") = false, py::arg("sum_positions") = false, py::arg("reference_is_to") = false,
      py::arg("memory_budget") = AttributionPatchingOptions{}.memory_budget, py::arg("progress") = py::none(),
      "See analysis.attribution_patch.");
}

}  // namespace introspect::python

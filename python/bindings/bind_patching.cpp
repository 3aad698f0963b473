#include "bindings.h"

#include "introspect/analysis/patching.h"

namespace introspect::python {
namespace {

using analysis::PatchAxes;
using analysis::PatchGrid;
using analysis::PatchPair;
using analysis::PatchWith;
using analysis::Place;
using analysis::Run;
using ModelHandle = std::shared_ptr<models::Model>;
using Ids = std::vector<int64_t>;

PatchWith parse_with(const std::string& name) {
  if (name == "run") return PatchWith::run;
  if (name == "zero") return PatchWith::zero;
  if (name == "mean") return PatchWith::mean;
  throw std::invalid_argument("patch_grid: what is patched in must be run, zero or mean, got " + name);
}

std::vector<Place> as_places(const std::vector<std::pair<Ids, Ids>>& places) {
  std::vector<Place> out;
  for (const auto& [to, from] : places) out.push_back({to, from});
  return out;
}

}  // namespace

void bind_patching(py::module_& m) {
  py::class_<PatchAxes>(m, "PatchAxes",
                        "The axes of a grid of patches at one point: see analysis.patch_grid.")
      .def(py::init([](const std::string& point, Ids layers, Ids heads, bool by_position, bool by_head,
                       bool by_key, int64_t window) {
             return PatchAxes{hooks::parse_point(point),
                              std::move(layers),
                              std::move(heads),
                              by_position,
                              by_head,
                              by_key,
                              window};
           }),
           py::arg("point"), py::kw_only(), py::arg("layers") = Ids(), py::arg("heads") = Ids(),
           py::arg("by_position") = true, py::arg("by_head") = false, py::arg("by_key") = false,
           py::arg("window") = 1);

  py::class_<PatchPair>(m, "PatchPair", R"doc(
A patched run, the run that activations are taken of, and what is measured: see analysis.patch_grid.

Args:
    to, from_: token ids.
    metric: of the patched run.
    to_interventions, from_interventions: under which they run.
    places: pairs of lists of positions, patched together, of ``to`` and ``from_``; none: every position.
)doc")
      .def(py::init([](Ids to, Ids from, analysis::Metric metric,
                       std::vector<hooks::Intervention> to_interventions,
                       std::vector<hooks::Intervention> from_interventions,
                       const std::vector<std::pair<Ids, Ids>>& places) {
             return PatchPair{{std::move(to), std::move(to_interventions)},
                              {std::move(from), std::move(from_interventions)},
                              std::move(metric),
                              as_places(places)};
           }),
           py::arg("to"), py::arg("from_"), py::arg("metric"), py::kw_only(),
           py::arg("to_interventions") = std::vector<hooks::Intervention>(),
           py::arg("from_interventions") = std::vector<hooks::Intervention>(),
           py::arg("places") = std::vector<std::pair<Ids, Ids>>());

  py::class_<PatchGrid>(m, "PatchGrid", "Metrics of a grid of patches, float64: see analysis.patch_grid.")
      .def_readonly("values", &PatchGrid::values)
      .def_readonly("axes", &PatchGrid::axes)
      .def_readonly("to", &PatchGrid::to)
      .def_readonly("from_", &PatchGrid::from)
      .def_readonly("token_layers_asked", &PatchGrid::token_layers_asked)
      .def_readonly("token_layers_to_run", &PatchGrid::token_layers_to_run);

  m.def(
      "patch_grid",
      [](const ModelHandle& model, const std::vector<PatchPair>& pairs, const PatchAxes& axes,
         const std::string& with, const std::optional<torch::Tensor>& mean, bool reference_is_to,
         int64_t memory_budget, py::object progress) {
        const analysis::PatchOptions options{axes,
                                             parse_with(with),
                                             mean.value_or(torch::Tensor{}),
                                             reference_is_to,
                                             memory_budget,
                                             as_shown_progress(std::move(progress))};
        const py::gil_scoped_release release;
        return analysis::patch_grid(model, pairs, options);
      },
      py::arg("model"), py::arg("pairs"), py::arg("axes"), py::kw_only(), py::arg("with_") = "run",
      py::arg("mean") = py::none(), py::arg("reference_is_to") = false,
      py::arg("memory_budget") = analysis::PatchOptions{}.memory_budget, py::arg("progress") = py::none());

  m.def(
      "activations_at",
      [](const ModelHandle& model, const std::vector<Ids>& tokens, const std::string& point,
         const Ids& layers, const std::vector<std::vector<hooks::Intervention>>& interventions) {
        std::vector<Run> runs;
        for (size_t i = 0; i < tokens.size(); ++i)
          runs.push_back(
              {tokens[i], interventions.empty() ? std::vector<hooks::Intervention>{} : interventions.at(i)});
        const py::gil_scoped_release release;
        return analysis::activations_at(model, runs, hooks::parse_point(point), layers);
      },
      py::arg("model"), py::arg("tokens"), py::arg("point"), py::kw_only(), py::arg("layers") = Ids(),
      py::arg("interventions") = std::vector<std::vector<hooks::Intervention>>(), R"doc(
Activations of runs at one point, [layers, T, ...] each (patterns [layers, T, heads, T]), in float32 at least.

What the runs begin with is run once, so that equal activations of two runs are equal bit for bit.
)doc");

  m.def(
      "patched_residuals",
      [](const ModelHandle& model, const Ids& tokens, const torch::Tensor& source, const PatchAxes& axes,
         const Ids& positions, const Ids& patched, int64_t memory_budget, py::object progress) {
        const auto shown = as_shown_progress(std::move(progress));
        const py::gil_scoped_release release;
        const auto present = analysis::activations_at(model, {{tokens, {}}}, axes.point).front();
        std::vector<Place> places;
        for (const int64_t p : patched) places.push_back({{p}, {p}});
        for (int64_t p = 0; patched.empty() && p < static_cast<int64_t>(tokens.size()); ++p)
          places.push_back({{p}, {p}});
        const auto cells = analysis::patch_cells(axes, places, present, source.to(present.options()));
        torch::Tensor out;
        analysis::run_cells(
            model, {tokens, {}}, cells, positions, memory_budget, shown,
            [&](const Ids& numbers, const torch::Tensor& resid_NPD) {
              if (!out.defined())
                out = torch::empty({static_cast<int64_t>(cells.size()), resid_NPD.size(1), resid_NPD.size(2)},
                                   resid_NPD.options());
              out.index_copy_(0, torch::tensor(numbers, torch::kLong), resid_NPD);
            });
        return out;
      },
      py::arg("model"), py::arg("tokens"), py::arg("source"), py::arg("axes"), py::kw_only(),
      py::arg("positions"), py::arg("patched") = Ids(),
      py::arg("memory_budget") = analysis::PatchOptions{}.memory_budget, py::arg("progress") = py::none(),
      R"doc(
The last residual [cells, positions, d_model] of a run for each cell of a grid that puts in ``source`` [layers, T, ...]
at each of the ``patched`` positions, or at all.

Raises:
    ShapeError: a source of another shape than the run's own activations.
)doc");
}

}  // namespace introspect::python

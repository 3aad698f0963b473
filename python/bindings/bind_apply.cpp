#include "bindings.h"

#include "introspect/steering/apply.h"
#include "introspect/steering/condition.h"
#include "introspect/steering/residual_norms.h"
#include "native_model.h"
#include "value_type.h"

namespace introspect::python {

namespace {

using steering::Condition;
using Vector = std::optional<steering::ControlVector>;

Condition make_condition(const torch::Tensor& direction, int64_t layer, double threshold, bool above,
                         const std::string& measure, const std::string& over) {
  if (over != "mean" && over != "last")
    throw std::invalid_argument("Condition: over must be 'mean' or 'last', got '" + over + "'");
  return {layer, direction, threshold, above, steering::parse_measure(measure), over == "last"};
}

}  // namespace

void bind_apply(py::module_& m) {
  using State = std::tuple<int64_t, torch::Tensor, double, bool, int, bool>;
  py::class_<Condition> type(m, "Condition", R"doc(
Decides, for each prompt, whether to steer: by how much of a direction the unsteered residual stream holds.

Args:
    direction: [d_model], any floating dtype.
    layer: read at the output of this block.
    threshold: what the measure is compared with.
    above: it holds above the threshold; False: below it.
    measure: "cosine" of activation h and direction c; "projection", h.c / |c|; or "cast", the cosine of h and
        tanh(c (c.h) / (c.c)), which is never negative.
    over: "mean" of h over the prompt, or its "last" token's.

Raises:
    ValueError: another measure or ``over``.

Source: conditional activation steering (CAST), Lee et al. 2024, arXiv:2409.05907, which is "cast" over the "mean".
)doc");
  copy_as_value(type);
  type.def(py::pickle(
      [](const Condition& c) {
        return State(c.layer, c.direction, c.threshold, c.above, static_cast<int>(c.measure),
                     c.last_position);
      },
      [](const State& state) {
        const auto& [layer, direction, threshold, above, measure, last] = state;
        return Condition{layer, direction, threshold, above, static_cast<steering::Measure>(measure), last};
      }));
  type.def(py::init(&make_condition), py::arg("direction"), py::kw_only(), py::arg("layer"),
           py::arg("threshold"), py::arg("above") = true, py::arg("measure") = "cosine",
           py::arg("over") = "mean")
      .def_readonly("direction", &Condition::direction)
      .def_readonly("layer", &Condition::layer)
      .def_readonly("threshold", &Condition::threshold)
      .def_readonly("above", &Condition::above)
      .def(
          "measure",
          [](const Condition& condition, const py::object& model, const torch::Tensor& tokens,
             std::optional<torch::Tensor> attention_mask) {
            const auto native = native_model(model);
            const py::gil_scoped_release release;
            return steering::measure(*native, condition, tokens, attention_mask.value_or(torch::Tensor{}));
          },
          py::arg("model"), py::arg("tokens"), py::arg("attention_mask") = py::none(), R"doc(
How much of the direction there is in each prompt, float64 [batch]; only blocks up to the layer are run.

Args:
    model: an introspect.Model; what is hooked into it takes no part.
    tokens: int64 [batch, pos].
    attention_mask: bool [batch, pos], False for padding at either side.

Raises:
    IndexError: a layer the model does not have.
    ShapeError: a direction of another width.
    ValueError: a direction that is zero or not finite, or a threshold that is NaN.
)doc")
      .def(
          "rows",
          [](const Condition& condition, const py::object& model, const torch::Tensor& tokens,
             std::optional<torch::Tensor> attention_mask) {
            const auto native = native_model(model);
            const py::gil_scoped_release release;
            return steering::rows_where(*native, condition, tokens, attention_mask.value_or(torch::Tensor{}));
          },
          py::arg("model"), py::arg("tokens"), py::arg("attention_mask") = py::none(),
          "The rows of the batch in which the condition holds; see ``measure``.")
      .def(
          "validate",
          [](const Condition& condition, const py::object& model) {
            steering::validate(condition, *native_model(model));
          },
          py::arg("model"), "Raises what ``measure`` raises, without running anything.");

  m.def(
      "as_interventions",
      [](const std::vector<Vector>& vectors, const hooks::Intervention& how, const py::object& model,
         std::optional<std::pair<int64_t, int64_t>> layers, const Vector& second) {
        std::vector<const steering::ControlVector*> pointers;
        for (const auto& vector : vectors) pointers.push_back(vector ? &*vector : nullptr);
        return steering::as_interventions(pointers, how, native_model(model)->cfg().n_layers, layers,
                                          second ? &*second : nullptr);
      },
      py::arg("vectors"), py::arg("how"), py::kw_only(), py::arg("model"), py::arg("layers") = py::none(),
      py::arg("second") = py::none(), R"doc(
Control vectors as interventions: ``Model.steer`` adds them.

Args:
    vectors: one for all rows of ``how``, or one for each (without rows: for 0, 1, ...); None leaves its row as it is.
    how: an Intervention without values: operator, strength, parameters, positions, text and rows.
    model: the introspect.Model they are for.
    layers: first and last block, both included; None is every layer a vector has.
    second: the second direction of operators on a plane.

Raises:
    ValueError: no vectors, or another number of rows.
    IndexError: a layer the model does not have.
    ShapeError: vectors of different widths.
    ConfigError: a vector has no direction in the range, or ``second`` none for a layer.
)doc");

  m.def(
      "residual_norms",
      [](const py::object& model, const torch::Tensor& tokens, std::optional<std::vector<int64_t>> layers,
         std::optional<std::vector<int64_t>> positions, std::optional<torch::Tensor> attention_mask) {
        const auto native = native_model(model);
        const py::gil_scoped_release release;
        return steering::residual_norms(
            *native, tokens,
            {std::move(layers), std::move(positions), attention_mask.value_or(torch::Tensor{})});
      },
      py::arg("model"), py::arg("tokens"), py::kw_only(), py::arg("layers") = py::none(),
      py::arg("positions") = py::none(), py::arg("attention_mask") = py::none(),
      "Median norm of the residual stream after each block: see introspect.residual_norms.");
}

}  // namespace introspect::python

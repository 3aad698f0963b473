#include "bindings.h"

#include <variant>

#include <torch/csrc/autograd/python_variable.h>

#include "introspect/core/check.h"
#include "introspect/hooks/operators.h"

namespace introspect::python {

namespace {

using hooks::Operands;
using hooks::Operator;

using Needs = std::map<std::string, Operator::Need>;

/// "required", "optional" and "none" are of an operand called v; otherwise a need for each name.
Needs parse_operands(const std::variant<std::string, std::map<std::string, std::string>>& operand) {
  const auto need = [](const std::string& word) {
    if (word == "required") return Operator::Need::kRequired;
    if (word == "optional") return Operator::Need::kOptional;
    throw std::invalid_argument(
        concat("register_operator: operand must be 'required', 'optional' or 'none', got '", word, "'"));
  };
  if (const auto* word = std::get_if<std::string>(&operand))
    return *word == "none" ? Needs{} : Needs{{"v", need(*word)}};
  Needs out;
  for (const auto& [name, word] : std::get<1>(operand)) out[name] = need(word);
  return out;
}

/// A Python callable. Operators outlive the interpreter, and a callable does not.
std::shared_ptr<py::function> held(py::function function) {
  return {new py::function(std::move(function)), [](py::function* f) {
            if (Py_IsInitialized() == 0) return;
            const py::gil_scoped_acquire gil;
            delete f;
          }};
}

/// None, the tensor "v" alone, or {name: tensor}.
py::object in_python(const Operands& operands, bool takes_v) {
  if (!takes_v) return py::cast(std::map<std::string, torch::Tensor>(operands.begin(), operands.end()));
  return operands.empty() ? py::none() : py::cast(operands.v());
}

Operator::Apply as_apply(const std::string& name, py::function function, bool takes_v) {
  return [function = held(std::move(function)), name, takes_v](const Operator::Input& in) {
    const auto given = in.x.clone();  // its own, whatever is done to it
    const py::gil_scoped_acquire gil;
    auto keywords = py::cast(in.parameters).cast<py::dict>();
    if (in.source.defined()) keywords["source"] = in.source;
    const py::object result = (*function)(given, in_python(in.operands, takes_v), in.strength, **keywords);
    check<HookError>(THPVariable_Check(result.ptr()), "operator '", name, "' must return a tensor, got ",
                     Py_TYPE(result.ptr())->tp_name);
    return result.cast<torch::Tensor>();
  };
}

void register_operator(const std::string& name, py::function function,
                       const std::variant<std::string, std::map<std::string, std::string>>& operand,
                       bool reads_source, std::optional<py::function> check_operands, bool takes_strength,
                       double identity, std::map<std::string, std::optional<double>> parameters) {
  check<std::invalid_argument>(!reads_source || !parameters.contains("source"),
                               "register_operator: no parameter may be called source, which is what '", name,
                               "' reads");
  Operator op{.operands = parse_operands(operand),
              .reads_source = reads_source,
              .takes_strength = takes_strength,
              .identity = identity,
              .parameters = std::move(parameters)};
  const bool takes_v = op.operands.empty() || (op.operands.size() == 1 && op.operands.contains("v"));
  op.apply = as_apply(name, std::move(function), takes_v);
  check<std::invalid_argument>(takes_v || check_operands.has_value(), "register_operator: '", name,
                               "' needs check=, as its operands are not v alone");
  if (check_operands)
    op.check_operands = [function = held(std::move(*check_operands)), takes_v](
                            const Operands& operands, const Operator::Widths& widths) {
      const py::gil_scoped_acquire gil;
      (*function)(in_python(operands, takes_v), widths.x, widths.source);
    };
  hooks::register_operator(name, std::move(op));
}

}  // namespace

void bind_operators(py::module_& m) {
  m.def("operator_names", &hooks::operator_names, "The operators an Intervention may name, sorted.");
  m.def("register_operator", &register_operator, py::arg("name"), py::arg("function"), py::kw_only(),
        py::arg("operand") = "required", py::arg("reads_source") = false, py::arg("check") = py::none(),
        py::arg("takes_strength") = true, py::arg("identity") = 0.0,
        py::arg("parameters") = std::map<std::string, std::optional<double>>{}, R"doc(
Makes a function an operator that interventions and ``Model.steer`` may name, for as long as the process lives.

Args:
    name: not taken yet. Interventions stand in files by this name, so it should mean one thing.
    function: ``function(x, v, strength, **parameters)`` returns the new values of x [rows, positions, (heads,) width],
        in its shape; they are rounded to its dtype. v broadcasts against x, and is None where there is none. Each
        position must be treated as if it were alone: a step of a generation shows one at a time.
        With operands of other names v is {name: tensor}, and with reads_source the call has ``source=``, the
        activation at the intervention's source, of the same rows and positions.
    operand: "required", "optional" or "none", of one operand v; or {name: "required" or "optional"} of several.
    reads_source: True for an operator that reads a second point.
    check: ``check(v, width, source_width)`` raises for operands that do not fit points of these widths, before
        anything runs. Operands of other names need one; v is then given as it is, not broadcast.
    takes_strength: False allows no strength but 1 (and the identity's).
    identity: the strength at which nothing is changed; the function is not called with it.
    parameters: its numbers by name, with what one is that is not given; None must be given.

Raises:
    ValueError: the name is taken, an unknown ``operand``, or operands of other names than v without a ``check``.
)doc");
}

}  // namespace introspect::python

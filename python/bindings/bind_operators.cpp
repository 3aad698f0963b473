#include "bindings.h"

#include <torch/csrc/autograd/python_variable.h>

#include "introspect/core/check.h"
#include "introspect/hooks/operators.h"

namespace introspect::python {

namespace {

using hooks::Operator;

Operator::Operand parse_operand(const std::string& operand) {
  if (operand == "required") return Operator::Operand::kRequired;
  if (operand == "optional") return Operator::Operand::kOptional;
  if (operand == "none") return Operator::Operand::kNone;
  throw std::invalid_argument("register_operator: operand must be 'required', 'optional' or 'none', got '" +
                              operand + "'");
}

/// A Python callable as an operator. Operators outlive the interpreter, and a callable does not.
Operator::Apply as_apply(const std::string& name, py::function function) {
  const std::shared_ptr<py::function> held(new py::function(std::move(function)), [](py::function* f) {
    if (Py_IsInitialized() == 0) return;
    const py::gil_scoped_acquire gil;
    delete f;
  });
  return [held, name](const torch::Tensor& x, const torch::Tensor& operand, double strength,
                      const hooks::Parameters& parameters) {
    const auto given = x.clone();  // its own, whatever is done to it
    const py::gil_scoped_acquire gil;
    const py::object v = operand.defined() ? py::cast(operand) : py::none();
    const py::object result = (*held)(given, v, strength, **py::cast(parameters).cast<py::dict>());
    check<HookError>(THPVariable_Check(result.ptr()), "operator '", name, "' must return a tensor, got ",
                     Py_TYPE(result.ptr())->tp_name);
    return result.cast<torch::Tensor>();
  };
}

void register_operator(const std::string& name, py::function function, const std::string& operand,
                       bool takes_strength, double identity,
                       std::map<std::string, std::optional<double>> parameters) {
  hooks::register_operator(name, {.apply = as_apply(name, std::move(function)),
                                  .operand = parse_operand(operand),
                                  .takes_strength = takes_strength,
                                  .identity = identity,
                                  .parameters = std::move(parameters)});
}

}  // namespace

void bind_operators(py::module_& m) {
  m.def("operator_names", &hooks::operator_names, "The operators an Intervention may name, sorted.");
  m.def("register_operator", &register_operator, py::arg("name"), py::arg("function"), py::kw_only(),
        py::arg("operand") = "required", py::arg("takes_strength") = true, py::arg("identity") = 0.0,
        py::arg("parameters") = std::map<std::string, std::optional<double>>{}, R"doc(
Makes a function an operator that interventions and ``Model.steer`` may name, for as long as the process lives.

Args:
    name: not taken yet. Interventions stand in files by this name, so it should mean one thing.
    function: ``function(x, v, strength, **parameters)`` returns the new values of x [rows, positions, (heads,) width],
        in its shape; they are rounded to its dtype. v broadcasts against x, and is None where there is none. Each
        position must be treated as if it were alone: a step of a generation shows one at a time.
    operand: "required", "optional" or "none".
    takes_strength: False allows no strength but 1 (and the identity's).
    identity: the strength at which nothing is changed; the function is not called with it.
    parameters: its numbers by name, with what one is that is not given; None must be given.

Raises:
    ValueError: the name is taken, or an unknown ``operand``.
)doc");
}

}  // namespace introspect::python

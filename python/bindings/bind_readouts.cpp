#include "readouts.h"

#include "introspect/experiments/readouts.h"

namespace introspect::python {
namespace {

using experiments::Need;
using experiments::PreparedReadout;
using experiments::Readout;
using experiments::ReadoutInputs;
using experiments::ReadoutRequest;
using experiments::Value;

/// A Python object that C++ threads may hold and drop. What is left at the interpreter's end is not freed.
std::shared_ptr<py::object> held(py::object object) {
  return {new py::object(std::move(object)), [](py::object* one) {
            if (Py_IsInitialized() == 0) return;
            const py::gil_scoped_acquire acquire;
            delete one;
          }};
}

/// "residuals", "attention" or the name of a block's point, of all layers; after "unsteered_" of the unsteered run.
Need need_of(std::string name) {
  constexpr std::string_view kUnsteered = "unsteered_";
  const bool is_unsteered = name.rfind(kUnsteered, 0) == 0;
  if (is_unsteered) name = name.substr(kUnsteered.size());
  Need out = name == "attention" ? Need::attention_to_spans() : Need::residuals();
  if (name != "attention" && name != "residuals") out.read.point = hooks::parse_point(name);
  out.is_unsteered = is_unsteered;
  return out;
}

py::object float32(const torch::Tensor& values) {
  if (!values.defined()) return py::none();
  return py::cast(values.to(torch::kCPU, torch::kFloat32));
}

py::object json_value(const Value& value) {
  return py::module_::import("json").attr("loads")(value.to_json());
}

std::string problem_of(const py::object& check, const Value& value) {
  const py::gil_scoped_acquire acquire;
  const auto problem = check(json_value(value));
  return problem.is_none() ? "" : py::cast<std::string>(problem);
}

void register_python_readout(const std::string& name, const std::vector<std::string>& needs, py::object read,
                             const py::object& check_parameter, const py::object& check, int64_t version,
                             bool own_question_only, bool reads_text) {
  std::vector<Need> of_graph;
  bool compares = false;
  for (const auto& need : needs)
    if (need == "unsteered_logits")
      compares = true;
    else
      of_graph.push_back(need_of(need));
  Readout out;
  out.name = name;
  out.fields = {name};
  out.version = version;
  if (!check_parameter.is_none())
    out.check_parameter = [held = held(check_parameter)](const Value& value) {
      return problem_of(*held, value);
    };
  if (!check.is_none())
    out.check = [held = held(check)](const std::string&, const Value& value) {
      return problem_of(*held, value);
    };
  out.prepare =
      [=, read = held(std::move(read))](const ReadoutRequest& request) -> std::optional<PreparedReadout> {
    if (!request.parameter) return std::nullopt;
    PreparedReadout prepared;
    prepared.needs = of_graph;
    prepared.compares = compares;
    prepared.own_question_only = own_question_only;
    prepared.reads_text = reads_text;
    prepared.fields = {{name}};
    prepared.read = [name, read,
                     parameter = *request.parameter](const ReadoutInputs& inputs) -> Value::Fields {
      const py::gil_scoped_acquire acquire;
      py::list needed;
      for (const auto& one : inputs.needed) {
        // One position is read of activations: [1, L, ...] is [L, ...] here.
        const bool has_position = one.defined() && one.dim() > 2;
        needed.append(float32(has_position ? one[0] : one));
      }
      const auto value =
          (*read)(json_value(parameter), float32(inputs.logits_V), float32(inputs.unsteered_logits_V), needed,
                  inputs.is_own_question, inputs.text);
      return {{name, as_value(value, "readout '" + name + "': read must return")}};
    };
    return prepared;
  };
  register_readout(std::move(out));
}

}  // namespace

Value as_value(const py::handle& given, const std::string& where) {
  if (given.is_none()) return Value();
  if (py::isinstance<py::bool_>(given)) return given.cast<bool>();
  if (py::isinstance<py::int_>(given)) return given.cast<int64_t>();
  if (py::isinstance<py::float_>(given)) return given.cast<double>();
  if (py::isinstance<py::str>(given)) return given.cast<std::string>();
  if (py::isinstance<py::dict>(given)) {
    Value::Fields fields;
    for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(given))
      fields.emplace_back(py::str(key).cast<std::string>(), as_value(value, where));
    return fields;
  }
  if (py::isinstance<py::list>(given) || py::isinstance<py::tuple>(given)) {
    Value::List list;
    Value::Numbers numbers;
    for (const auto& one : given) {
      list.push_back(as_value(one, where));
      if (const auto* const number = list.back().get_if<double>()) numbers.push_back(*number);
    }
    if (!list.empty() && numbers.size() == list.size()) return numbers;
    return list;
  }
  if (py::hasattr(given, "tolist")) return as_value(given.attr("tolist")(), where);  // tensors and arrays
  throw py::type_error(where + " numbers, texts, lists or dictionaries of them, got a " +
                       py::str(py::type::of(given).attr("__name__")).cast<std::string>());
}

void bind_readouts(py::module_& m) {
  m.def("register_readout", &register_python_readout, py::arg("name"), py::kw_only(), py::arg("needs"),
        py::arg("read"), py::arg("check_parameter"), py::arg("check"), py::arg("version"),
        py::arg("own_question_only"), py::arg("reads_text"), "See introspect.register_readout.");
  m.def(
      "readouts",
      [] {
        py::list out;
        for (const auto& one : experiments::readouts()) out.append(py::make_tuple(one->name, one->fields));
        return out;
      },
      "(name, fields) of every readout, in the order of a reading's JSON.");
  m.def("reading_problem", &experiments::problem_of_reading, py::arg("json"),
        py::call_guard<py::gil_scoped_release>(),
        "What is wrong with the JSON of a reading that comes from a file, or nothing.");
}

}  // namespace introspect::python

#include "call_errors.h"

#include <string>

namespace introspect::python {

namespace {

using Function = PyObject* (*)(PyObject* self, PyObject* const* args, size_t n_args, PyObject* keywords);

constexpr auto kUninitialised =
    "an object that was made with __new__ and never initialised was given: call its class, or a function "
    "that makes one";

Function dispatch = nullptr;  // pybind11's own: one for all functions

/// The function's record if the error that is set is pybind11's about its own arguments.
const py::detail::function_record* refused(PyObject* self, const std::string& message) {
  const auto* record = py::detail::function_record_ptr_from_PyObject(self);
  if (!record || message.rfind(std::string(record->name) + "(): incompatible ", 0) != 0) return nullptr;
  const bool own = record->is_constructor || message.find(record->signature) != std::string::npos;
  return own ? record : nullptr;  // or it is of a function that was called inside
}

/// The name under which callers know a function: "KVCache.fork", "Intervention", "run_trie".
std::string public_name(const py::detail::function_record& record) {
  const std::string name = record.name;
  if (!record.scope || !PyType_Check(record.scope.ptr())) return name;
  const auto scope = record.scope.attr("__name__").cast<std::string>();
  return record.is_constructor ? scope : name.empty() ? scope : scope + "." + name;
}

py::object explained(const py::detail::function_record& record, PyObject* const* args, size_t n_args,
                     PyObject* keywords) {
  if (record.is_method) {
    const py::handle owner = n_args > 0 ? args[0] : nullptr;
    if (!owner || !py::isinstance(owner, record.scope))
      return py::str("{}(): must be called on a {}, got {}")
          .format(public_name(record), record.scope.attr("__name__"),
                  owner ? py::object(py::type::of(owner).attr("__name__")) : py::str("nothing"));
  }
  py::list signatures;
  for (const auto* overload = &record; overload; overload = overload->next)
    signatures.append(py::str(overload->signature));
  py::list positional;
  for (size_t i = record.is_method ? 1 : 0; i < n_args; ++i) positional.append(py::handle(args[i]));
  py::dict named;
  if (keywords)
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keywords); ++i)
      named[py::handle(PyTuple_GET_ITEM(keywords, i))] = py::handle(args[n_args + static_cast<size_t>(i)]);
  return py::module_::import("introspect._call_errors")
      .attr("explain")(public_name(record), signatures, positional, named, record.is_method);
}

/// What to say where a function that was given has returned something that C++ cannot take.
py::str returned_wrong(PyObject* self, const std::string& message) {
  const auto* record = py::detail::function_record_ptr_from_PyObject(self);
  const auto begin = message.find("<class '"), end = message.find("'>");
  const bool named = begin != std::string::npos && end != std::string::npos;
  return py::str("{}(): a function that was given returned {}, which is not what is wanted of it")
      .format(record ? public_name(*record) : "",
              named ? message.substr(begin + 8, end - begin - 8) : "something");
}

PyObject* call(PyObject* self, PyObject* const* args, size_t n_args, PyObject* keywords) {
  PyObject* result = dispatch(self, args, n_args, keywords);
  if (result || !(PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_RuntimeError)))
    return result;
  py::error_already_set error;
  try {
    const auto message = py::str(error.value()).cast<std::string>();
    if (message.rfind("Unable to cast from non-held to held instance", 0) == 0) {
      PyErr_SetString(PyExc_TypeError, kUninitialised);
      return nullptr;
    }
    if (message.rfind("Unable to cast Python instance of type ", 0) == 0) {
      const auto words = returned_wrong(self, message);
      PyErr_SetObject(PyExc_TypeError, words.ptr());
      return nullptr;
    }
    if (const auto* record = error.matches(PyExc_TypeError) ? refused(self, message) : nullptr) {
      const auto words = explained(*record, args, static_cast<size_t>(PyVectorcall_NARGS(n_args)), keywords);
      PyErr_SetObject(PyExc_TypeError, words.ptr());
      return nullptr;
    }
  } catch (const std::exception&) {  // what the arguments themselves raise when they are looked at
  }
  error.restore();
  return nullptr;
}

void redirect(py::handle function) {
  const auto native = py::detail::get_function(function);
  if (!native || !PyCFunction_Check(native.ptr())) return;
  auto* object = reinterpret_cast<PyCFunctionObject*>(native.ptr());
  if (!object->m_self || !py::detail::is_function_record_PyObject(object->m_self)) return;
  auto* method = object->m_ml;
  if (method->ml_flags != (METH_FASTCALL | METH_KEYWORDS)) return;  // another pybind11 calls in another way
  const auto pointer = reinterpret_cast<Function>(reinterpret_cast<void (*)()>(method->ml_meth));
  if (pointer == &call) return;
  dispatch = pointer;
  method->ml_meth = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call));
}

void* refuse_uninitialised(size_t) {
  throw py::type_error(kUninitialised);
}

void redirect_class(py::handle type) {
  auto* info = py::detail::get_type_info(reinterpret_cast<PyTypeObject*>(type.ptr()));
  if (!info) return;
  info->operator_new = &refuse_uninitialised;  // asked only for an object that holds nothing yet
  for (const auto& [name, member] : py::dict(type.attr("__dict__"))) {
    if (PyType_Check(member.ptr())) {
      redirect_class(member);
    } else if (py::isinstance<py::staticmethod>(member)) {
      redirect(member.attr("__func__"));
    } else if (py::hasattr(member, "fget")) {
      for (const char* part : {"fget", "fset"}) redirect(member.attr(part));
    } else {
      redirect(member);
    }
  }
}

}  // namespace

void explain_call_errors(py::module_& m) {
  for (const auto& [name, member] : py::dict(m.attr("__dict__"))) {
    if (PyType_Check(member.ptr()))
      redirect_class(member);
    else
      redirect(member);
  }
}

}  // namespace introspect::python

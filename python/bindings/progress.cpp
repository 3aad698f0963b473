#include "bindings.h"

namespace introspect::python {

Progress as_progress(py::object callback) {
  // Destroyed with the GIL held, wherever the last copy goes.
  const std::shared_ptr<py::object> held(new py::object(std::move(callback)), [](py::object* object) {
    const py::gil_scoped_acquire acquire;
    delete object;
  });
  return [held](const std::string& what, int64_t done, int64_t total) {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!held->is_none()) (*held)(what, done, total);
  };
}

Progress as_shown_progress(py::object callback) {
  return as_progress(py::module_::import("introspect.progress").attr("shown")(callback));
}

}  // namespace introspect::python

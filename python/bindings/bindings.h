#pragma once

#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <torch/csrc/utils/pybind.h>

#include "introspect/core/progress.h"

namespace py = pybind11;

namespace introspect::python {

// One function a module of cpp/, in its own bind_<module>.cpp.
void bind_io(py::module_& m);
void bind_text(py::module_& m);
void bind_ops(py::module_& m);
void bind_hooks(py::module_& m);
void bind_cache(py::module_& m);
void bind_models(py::module_& m);
void bind_steering(py::module_& m);
void bind_experiments(py::module_& m);

/// A Progress that calls `callback(what, done, total)` unless it is None, and lets Ctrl-C end the work either way.
inline Progress as_progress(py::object callback) {
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

}  // namespace introspect::python

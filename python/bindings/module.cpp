#include "bindings.h"

#include "introspect/core/error.h"
#include "introspect/version.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native part of introspect: see the package's own modules for the public names.";
  const auto error = py::register_exception<introspect::Error>(m, "Error", PyExc_RuntimeError);
  py::register_exception<introspect::ShapeError>(m, "ShapeError", error);
  py::register_exception<introspect::ConfigError>(m, "ConfigError", error);
  py::register_exception<introspect::IoError>(m, "IoError", error);
  py::register_exception<introspect::HookError>(m, "HookError", error);
  m.attr("__version__") = INTROSPECT_VERSION;
  m.attr("built_with_torch") = INTROSPECT_BUILT_WITH_TORCH;

  // In the order in which the modules use one another's types.
  namespace python = introspect::python;
  python::bind_io(m);
  python::bind_text(m);
  python::bind_ops(m);
  python::bind_hooks(m);
  python::bind_cache(m);
  python::bind_models(m);
  python::bind_steering(m);
  python::bind_experiments(m);
}

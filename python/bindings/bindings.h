#pragma once

#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

namespace py = pybind11;

namespace introspect::python {

// One function a module of cpp/, in its own bind_<module>.cpp.

}  // namespace introspect::python

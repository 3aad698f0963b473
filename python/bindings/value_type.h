#pragma once

#include "bindings.h"

namespace introspect::python {

/// copy and deepcopy of a type whose objects never change.
template <typename T, typename... Options>
void copy_as_value(py::class_<T, Options...>& type) {
  type.def("__copy__", [](const T& x) { return x; });
  type.def("__deepcopy__", [](const T& x, const py::dict&) { return x; }, py::arg("memo"));
}

}  // namespace introspect::python

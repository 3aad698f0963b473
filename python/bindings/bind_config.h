#pragma once

#include "bindings.h"

namespace introspect::python {

void bind_config(py::module_& m);

}  // namespace introspect::python

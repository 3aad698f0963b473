#pragma once

#include "bindings.h"

namespace introspect::python {

void bind_adapter(py::module_& m);

}  // namespace introspect::python

#pragma once

#include <string>

#include "bindings.h"

#include "introspect/experiments/value.h"

namespace introspect::python {

/// The value of a Python number, text, list, dictionary, tensor or array; None is NaN. Throws TypeError with `where` for
/// anything else.
experiments::Value as_value(const py::handle& given, const std::string& where);

void bind_readouts(py::module_& m);

}  // namespace introspect::python

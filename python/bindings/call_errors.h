#pragma once

#include "bindings.h"

namespace introspect::python {

/// Makes calls of everything in `m` fail in words that a caller understands. To be called when all of it is bound.
///
/// Arguments that fit no signature are named by introspect._call_errors, where pybind11 prints every signature and the
/// text of every argument. An object that was made with __new__ and never initialised is a TypeError wherever it is
/// given to a function, where pybind11 would hand out memory that holds no object. Calls that succeed are as fast as
/// before.
void explain_call_errors(py::module_& m);

}  // namespace introspect::python

#pragma once

#include <memory>
#include <string>

#include "bindings.h"
#include "introspect/models/model.h"

namespace introspect::python {

/// The native model of an introspect.Model or HookedTransformer, or of a native one itself. Throws a TypeError for
/// anything else.
inline std::shared_ptr<const models::Model> native_model(const py::object& model) {
  const auto native = py::hasattr(model, "native") ? py::object(model.attr("native")) : model;
  if (!py::isinstance<models::Model>(native))
    throw py::type_error(
        "model must be an introspect.Model, got " + py::type::of(model).attr("__name__").cast<std::string>() +
        (py::isinstance<py::str>(model) ? ": introspect.load_model makes one of a name or path" : ""));
  return native.cast<std::shared_ptr<models::Model>>();
}

}  // namespace introspect::python

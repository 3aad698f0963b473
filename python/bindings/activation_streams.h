#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "introspect/activations/activation_source.h"

namespace introspect::python {

/// Training on streams, in a file of its own.
void bind_dictionary_runs(py::module_& m);

/// Sites in Python: the hook's name and the number of the model.
using SiteNames = std::vector<std::pair<std::string, int64_t>>;

inline std::vector<activations::StreamSite> sites_of(const SiteNames& names) {
  std::vector<activations::StreamSite> out;
  for (const auto& [name, model] : names) out.push_back({name, 0, model});
  return out;
}

/// A Python object that C++ may keep and let go without the GIL.
inline std::shared_ptr<py::object> held(py::object object) {
  return {new py::object(std::move(object)), [](py::object* last) {
            const py::gil_scoped_acquire acquire;
            delete last;
          }};
}

}  // namespace introspect::python

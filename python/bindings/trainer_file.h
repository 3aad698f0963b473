#pragma once

#include <filesystem>
#include <string>

#include "bindings.h"

namespace introspect::python {

/// What all trainers have besides their steps: that they can be taken over, their file, and what they are.
template <typename T>
void bind_trainer_file(py::class_<T>& type, const std::string& file) {
  using NoGil = py::call_guard<py::gil_scoped_release>;
  const auto saves =
      "Write " + file + R"doc( into a folder, whole or not at all: weights, moments, counters, options.

Raises:
    IoError: it cannot be written.
)doc";
  type.def(py::init([](T& other) { return T(std::move(other)); }), py::arg("other"),
           "What another one was, which is not to be used any more.")
      .def("save", &T::save, py::arg("folder"), NoGil(), saves.c_str())
      .def_static(
          "load",
          [](const std::filesystem::path& folder, torch::Device device) { return T::load(folder, device); },
          py::arg("folder"), py::arg("device") = torch::Device(torch::kCPU), NoGil(), R"doc(
Go on with what ``save`` wrote: the same numbers, bit for bit on as many threads.

Raises:
    IoError: the file is missing or damaged.
)doc")
      .def_property_readonly("steps", &T::steps, "Updates done.")
      .def_property_readonly("d_in", &T::d_in)
      .def_property_readonly("d_out", &T::d_out)
      .def_property_readonly("origin", &T::origin)
      .def_property_readonly(
          "options",
          [](const T& trainer) {
            return py::module_::import("json").attr("loads")(trainer.options().to_json());
          },
          "All options by name.");
}

}  // namespace introspect::python

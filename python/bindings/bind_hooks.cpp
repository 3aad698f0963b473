#include "bindings.h"

#include "introspect/hooks/hook_registry.h"

namespace introspect::python {

namespace {

/// A Python hook sees the tensor and the full name; it returns a replacement or None.
hooks::Callback as_callback(
    std::function<std::optional<torch::Tensor>(torch::Tensor, std::string)> function) {
  return [function = std::move(function)](const torch::Tensor& activation, hooks::Site site) {
    return function(activation, hooks::hook_name(site));
  };
}

}  // namespace

void bind_hooks(py::module_& m) {
  using hooks::HookRegistry;
  using hooks::Intervention;

  py::class_<Intervention>(m, "Intervention", R"doc(
A change to activations, as data: ``strength * directions[layer]`` is added at a hook point of each of the layers.

Args:
    directions: layer -> [d_model], or [batch, d_model] for a direction of its own for each row.
    strength: finite; zero leaves the pass as it was, bit for bit.
    first_position: first position that is changed, counted from the start of the KV cache, padding included.
    last_position: the position after the last; None for every later one, generated ones too.
)doc")
      .def(py::init([](std::map<int64_t, torch::Tensor> directions, double strength, int64_t first_position,
                       std::optional<int64_t> last_position) {
             Intervention i{
                 .directions = std::move(directions), .strength = strength, .first_position = first_position};
             if (last_position) i.last_position = *last_position;
             return i;
           }),
           py::arg("directions"), py::kw_only(), py::arg("strength") = 1.0, py::arg("first_position") = 0,
           py::arg("last_position") = py::none())
      .def_readonly("directions", &Intervention::directions)
      .def_readonly("strength", &Intervention::strength)
      .def_readonly("first_position", &Intervention::first_position);

  py::class_<HookRegistry>(m, "HookRegistry", "What is read and changed during a forward pass.")
      .def(
          "add",
          [](HookRegistry& registry, const std::string& name,
             std::function<std::optional<torch::Tensor>(torch::Tensor, std::string)> hook) {
            registry.add(name, as_callback(std::move(hook)));
          },
          py::arg("name"), py::arg("hook"), R"doc(
Calls ``hook(tensor, name)`` at a hook point; what it returns, unless None, replaces the activation.

Raises:
    HookError: the name does not exist; the message lists the nearest names.
)doc")
      .def(
          "add_intervention", [](HookRegistry& registry, const Intervention& i) { registry.add(i); },
          py::arg("intervention"), R"doc(
Applies an intervention; one of strength zero is dropped.

Raises:
    IndexError: a layer that the model does not have.
    ShapeError: a direction that is not [d_model] or [batch, d_model].
    ValueError: a strength or direction that is not finite.
)doc")
      .def_property_readonly("empty", &HookRegistry::empty, "True if nothing would be read or changed.");

}

}  // namespace introspect::python

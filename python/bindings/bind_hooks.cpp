#include "bindings.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "introspect/core/check.h"
#include "introspect/hooks/activation_cache.h"
#include "introspect/hooks/hook_registry.h"

namespace introspect::python {

namespace {

using hooks::ActivationCache;
using hooks::Direction;
using hooks::HookId;
using hooks::HookOptions;
using hooks::HookRegistry;
using hooks::Intervention;
using hooks::Part;
using hooks::PositionRange;

Direction parse_direction(const std::string& direction) {
  if (direction == "fwd") return Direction::kForward;
  if (direction == "bwd") return Direction::kBackward;
  throw std::invalid_argument("direction must be fwd or bwd, got " + direction);
}

/// A Python callable with the name it is hooked at. Whoever drops the last reference need not hold the GIL.
class PythonHook {
 public:
  PythonHook(py::function function, std::string name)
      : function_(new py::function(std::move(function)), &PythonHook::destroy), name_(std::move(name)) {}

  /// Calls function(value, name); the result is a replacement, or nothing for None.
  std::optional<torch::Tensor> operator()(const torch::Tensor& value) const {
    const py::gil_scoped_acquire gil;
    const py::object result = (*function_)(value, name_);
    if (result.is_none()) return std::nullopt;
    check<HookError>(THPVariable_Check(result.ptr()), "hook at '", name_,
                     "' must return a tensor or None, got ", Py_TYPE(result.ptr())->tp_name);
    return result.cast<torch::Tensor>();
  }

  const std::string& name() const { return name_; }

 private:
  static void destroy(py::function* function) {
    if (Py_IsInitialized() == 0) return;  // the interpreter has gone, and the callable with it
    const py::gil_scoped_acquire gil;
    delete function;
  }

  std::shared_ptr<py::function> function_;
  std::string name_;
};

/// Autograd hands Python errors on as they are if they come as torch's own exception type, and makes RuntimeErrors of
/// all others.
[[noreturn]] void throw_through_autograd() {
  python_error error;
  error.persist();
  throw error;
}

/// The hook as autograd's engine calls it.
hooks::Callback as_backward_callback(PythonHook hook) {
  return [hook = std::move(hook)](const torch::Tensor& gradient, hooks::Site) {
    try {
      auto replacement = hook(gradient);
      if (replacement) hooks::check_replacement(hook.name(), gradient, *replacement);
      return replacement;
    } catch (py::error_already_set& error) {
      const py::gil_scoped_acquire gil;
      error.restore();
      throw_through_autograd();
    } catch (const HookError& error) {
      const py::gil_scoped_acquire gil;
      PyErr_SetString(py::module_::import("introspect._C").attr("HookError").ptr(), error.what());
      throw_through_autograd();
    }
  };
}

HookId add(HookRegistry& registry, const std::string& name, py::function function,
           const std::string& direction, bool prepend, bool permanent, int64_t level) {
  const HookOptions options{parse_direction(direction), prepend, permanent, level};
  PythonHook hook(std::move(function), name);
  if (options.direction == Direction::kBackward)
    return registry.add(name, as_backward_callback(std::move(hook)), options);
  return registry.add(
      name, [hook = std::move(hook)](const torch::Tensor& value, hooks::Site) { return hook(value); },
      options);
}

/// None, an index, a (start, stop[, step]) tuple, or a list of indices.
hooks::Positions as_positions(const py::object& positions) {
  if (positions.is_none()) return std::monostate{};
  if (py::isinstance<py::tuple>(positions)) {
    const auto ends = positions.cast<std::vector<std::optional<int64_t>>>();
    check<std::invalid_argument>(ends.size() == 2 || ends.size() == 3,
                                 "positions must be (start, stop) or (start, stop, step), got ", ends.size(),
                                 " numbers");
    return PositionRange{ends[0], ends[1], ends.size() == 3 ? ends[2].value_or(1) : 1};
  }
  if (py::isinstance<py::list>(positions)) return positions.cast<std::vector<int64_t>>();
  return positions.cast<int64_t>();
}

HookId record(HookRegistry& registry, const std::string& name, std::shared_ptr<ActivationCache> cache,
              const py::object& positions, std::optional<std::vector<int64_t>> heads,
              std::optional<torch::Device> device, std::optional<torch::ScalarType> dtype, bool gradient,
              bool detach, bool permanent, int64_t level) {
  return registry.record(name, std::move(cache),
                         {{as_positions(positions), std::move(heads).value_or(std::vector<int64_t>{})},
                          device,
                          dtype,
                          gradient,
                          detach,
                          permanent,
                          level});
}

void bind_activation_cache(py::module_& m) {
  py::class_<ActivationCache, std::shared_ptr<ActivationCache>>(m, "ActivationCache", R"doc(
Activations by full hook name, in the order in which a pass recorded them.

Gradients stand under the hook name with ``_grad`` after it. What is recorded again replaces what was there.
)doc")
      .def(py::init<>())
      .def("__len__", &ActivationCache::size)
      .def(
          "__contains__",
          [](const ActivationCache& cache, const std::string& name) { return cache.contains(name); },
          py::arg("name"))
      .def(
          "__getitem__",
          [](const ActivationCache& cache, const std::string& name) {
            try {
              return cache.at(name);
            } catch (const std::out_of_range& error) {
              throw py::key_error(error.what());
            }
          },
          py::arg("name"))
      .def("names", &ActivationCache::names, "Full names, in the order of the pass.")
      .def("items", &ActivationCache::items, "(name, tensor) pairs, in the order of the pass.")
      .def(
          "to_dict",
          [](const ActivationCache& cache) {
            py::dict out;
            for (const auto& [name, value] : cache.items()) out[py::str(name)] = value;
            return out;
          },
          "{name: tensor}, in the order of the pass; the tensors are shared, not copied.")
      .def_property_readonly("nbytes", &ActivationCache::nbytes,
                             "Memory of all tensors, in bytes; memory that several share counts once.")
      .def("to", &ActivationCache::to, py::arg("device") = py::none(), py::arg("dtype") = py::none(),
           py::call_guard<py::gil_scoped_release>(),
           "The same activations on another device, in another floating dtype, or both.");
}

}  // namespace

void bind_hooks(py::module_& m) {
  bind_activation_cache(m);
  bind_interventions(m);
  bind_operators(m);

  py::class_<HookRegistry>(m, "HookRegistry", R"doc(
What is read and changed during a forward pass and the backward pass after it.

At one point interventions run first, then hooks and recorders in the order of addition. A pass never alters it.
)doc")
      .def("add", &add, py::arg("name"), py::arg("hook"), py::kw_only(), py::arg("direction") = "fwd",
           py::arg("prepend") = false, py::arg("permanent") = false, py::arg("level") = 0, R"doc(
Calls ``hook(tensor, name)`` at a hook point; what it returns, unless None, replaces the activation or gradient.

The tensor is the hook's own copy: what it writes into it in place is a replacement too, and changes nothing recorded.

Args:
    name: full, such as "blocks.3.attn.hook_z".
    direction: "fwd" for the activation, "bwd" for the gradient of it.
    prepend: before what stands at the point, not after it.
    permanent: kept by ``reset``, unless asked for.
    level: of nesting, for ``reset``.

Returns:
    The hook's id.

Raises:
    HookError: the name does not exist; the message lists the nearest names.
)doc")
      .def(
          "add_intervention",
          [](HookRegistry& registry, const Intervention& i, bool prepend, bool permanent, int64_t level) {
            return registry.add(i, {Direction::kForward, prepend, permanent, level});
          },
          py::arg("intervention"), py::kw_only(), py::arg("prepend") = false, py::arg("permanent") = false,
          py::arg("level") = 0, R"doc(
Applies an intervention. One that changes nothing is checked and given an id, and that is all.

Args:
    prepend: before the other interventions.

Raises:
    ConfigError: there is no such operator.
    HookError: the model has no such point.
    IndexError: layers, positions, heads or rows out of range.
    ShapeError: an operand that does not fit.
    ValueError: an operand that is missing, not wanted or not finite, or a strength or parameters the operator does not
        take.
)doc")
      .def("record", &record, py::arg("name"), py::arg("cache"), py::kw_only(),
           py::arg("positions") = py::none(), py::arg("heads") = py::none(), py::arg("device") = py::none(),
           py::arg("dtype") = py::none(), py::arg("gradient") = false, py::arg("detach") = true,
           py::arg("permanent") = false, py::arg("level") = 0, R"doc(
Keeps an activation, or its gradient, in an ActivationCache.

Args:
    positions: None for all, an index (its dimension is dropped), a (start, stop) or (start, stop, step) tuple, or a
        list of indices. They count within the pass; negative ones from its end.
    heads: the heads to keep; None is all.
    device: where to keep it.
    dtype: to keep it in.
    gradient: the gradient, under the name with "_grad" after it.
    detach: False keeps the graph that gradients flow back through.

Raises:
    HookError: the name does not exist; the message lists the nearest names.
    IndexError: a head that does not exist.
    ValueError: heads at a point that has none, or a step below 1.
)doc")
      .def("remove", &HookRegistry::remove, py::arg("id"),
           "Takes one hook, intervention or recorder away. Raises HookError if there is none of this id.")
      .def(
          "reset",
          [](HookRegistry& registry, const std::optional<std::string>& direction, bool including_permanent,
             std::optional<int64_t> level) {
            registry.reset(direction ? std::optional(parse_direction(*direction)) : std::nullopt,
                           including_permanent, level);
          },
          py::kw_only(), py::arg("direction") = py::none(), py::arg("including_permanent") = false,
          py::arg("level") = py::none(), R"doc(
Takes away everything that is not permanent.

Args:
    direction: "fwd" or "bwd" only; None is both.
    including_permanent: the permanent ones too.
    level: those of this level only.
)doc")
      .def(
          "copy", [](const HookRegistry& registry) { return registry; },
          "A registry of the same hooks under the same ids, independent from now on.")
      .def_property_readonly("empty", &HookRegistry::empty, "True if nothing would be read or changed.")
      .def_property_readonly(
          "needs_grad", &HookRegistry::needs_grad,
          "True if a gradient is asked for, of an activation or of an intervention's tensors.");
}

}  // namespace introspect::python

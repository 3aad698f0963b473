#include "bindings.h"

#include <unordered_map>

#include <torch/csrc/autograd/python_variable.h>

#include "introspect/io/torch_zip.h"

namespace introspect::python {
namespace {

using io::TorchValue;

/// Plain Python values; a container that stands in a file twice is one object, as it was when it was saved.
class ToPython {
 public:
  py::object operator()(const TorchValue& value) {
    return std::visit([&](const auto& held) { return convert(held); }, value.held);
  }

 private:
  py::object convert(std::monostate) { return py::none(); }
  template <typename T>
  py::object convert(const T& plain) {
    return py::cast(plain);
  }
  template <typename T>
  py::object convert(const std::shared_ptr<const T>& container) {
    auto& known = made_[container.get()];
    if (!known) known = make(*container);
    return known;
  }
  py::object make(const TorchValue::List& list) {
    py::list out;
    for (const auto& item : list) out.append((*this)(item));
    return out;
  }
  py::object make(const TorchValue::Tuple& tuple) {
    py::tuple out(tuple.items.size());
    for (size_t i = 0; i < tuple.items.size(); ++i) out[i] = (*this)(tuple.items[i]);
    return out;
  }
  py::object make(const TorchValue::Dict& dict) {
    py::dict out;
    for (const auto& [key, value] : dict) out[(*this)(key)] = (*this)(value);
    return out;
  }

  std::unordered_map<const void*, py::object> made_;
};

TorchValue from_python(const py::handle& given, int depth = 0) {
  if (depth > 100)
    throw py::value_error("save_torch_zip: the value is nested more than 100 deep, or contains itself");
  if (given.is_none()) return {};
  if (py::isinstance<py::bool_>(given)) return {given.cast<bool>()};
  if (py::isinstance<py::int_>(given)) return {given.cast<int64_t>()};
  if (py::isinstance<py::float_>(given)) return {given.cast<double>()};
  if (py::isinstance<py::str>(given)) return {given.cast<std::string>()};
  if (THPVariable_Check(given.ptr())) return {given.cast<torch::Tensor>()};
  const auto all = [&](const py::handle& items) {
    TorchValue::List out;
    for (const auto& item : items) out.push_back(from_python(item, depth + 1));
    return out;
  };
  if (py::isinstance<py::list>(given)) return TorchValue::list(all(given));
  if (py::isinstance<py::tuple>(given))
    return {std::make_shared<const TorchValue::Tuple>(TorchValue::Tuple{all(given)})};
  if (py::isinstance<py::dict>(given)) {
    TorchValue::Dict out;
    for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(given))
      out.emplace_back(from_python(key, depth + 1), from_python(value, depth + 1));
    return TorchValue::dict(std::move(out));
  }
  throw py::type_error(
      "save_torch_zip: a value must be a tensor, a plain value or a container of them, got a " +
      py::str(py::type::of(given).attr("__name__")).cast<std::string>());
}

}  // namespace

void bind_torch_zip(py::module_& m) {
  m.def(
      "read_torch_zip",
      [](const std::filesystem::path& path, bool objects_as_data) {
        TorchValue value;
        {
          const py::gil_scoped_release release;
          value = io::read_torch_zip(
              path, objects_as_data ? io::UnknownObjects::as_data : io::UnknownObjects::refused);
        }
        return ToPython()(value);
      },
      py::arg("path"), py::kw_only(), py::arg("objects_as_data") = false, R"doc(
Read a file of torch.save (torch 1.6 and later); nothing in it is executed.

A pickle is a program; this knows only what tensors, parameters and plain containers need of it.

Args:
    path: a .pt, .pth or .bin file.
    objects_as_data: give objects of other classes as {"class": name, "arguments": ..., "state": ...} instead of
        refusing them; nothing of the class is looked up or run.

Returns:
    Nested dicts, lists and tuples of CPU tensors and plain values. An OrderedDict is a dict.

Raises:
    IoError: the file is missing, truncated or corrupt, is compressed, or names anything else, which is named.
)doc");
  m.def(
      "save_torch_zip",
      [](const std::filesystem::path& path, const py::object& value) {
        const auto given = from_python(value);
        const py::gil_scoped_release release;
        io::save_torch_zip(path, given);
      },
      py::arg("path"), py::arg("value"), R"doc(
Write a file that ``torch.load(path, weights_only=True)`` reads, whole or not at all.

Args:
    value: tensors, plain values, and dicts, lists and tuples of them.

Raises:
    TypeError: anything else is in it.
    ShapeError: a tensor's dtype has no class of storages.
    ValueError: the file would have 4 GiB or more; save_safetensors writes larger ones.
    IoError: the file cannot be written.
)doc");
}

}  // namespace introspect::python

#include "bind_adapter.h"

#include "introspect/core/check.h"
#include "introspect/models/adapter.h"

namespace introspect::python {

void bind_adapter(py::module_& m) {
  using models::Adapter;
  py::class_<Adapter, std::shared_ptr<Adapter>>(m, "Adapter", R"doc(
A LoRA adapter in the form in which peft saves it (Hu et al. 2021, arXiv:2106.09685).

``model.adapted(adapter)`` puts it into effect inside a ``with`` block, ``model.with_adapter(adapter)`` returns a model that
has it, and ``Graph.segment(..., adapter=adapter)`` runs one segment with it. The base model's weights are shared.
)doc")
      .def_static(
          "load",
          [](const std::filesystem::path& folder, bool any_base) {
            return std::const_pointer_cast<Adapter>(Adapter::load(folder, any_base));
          },
          py::arg("folder"), py::kw_only(), py::arg("any_base") = false,
          py::call_guard<py::gil_scoped_release>(), R"doc(
Reads a folder with adapter_config.json and adapter_model.safetensors; nothing in it is executed.

Args:
    any_base: an adapter that ``train_lora`` made runs on the model that it was trained on only, told by its hash; True
        lets it run on others of the same shapes. Files of peft tell no hash.

Raises:
    IoError: a file is missing or damaged.
    ConfigError: what plain LoRA on the products of blocks is not: another method, DoRA, biases, modules_to_save,
        embeddings, start values that change the base model; or weights that are there only as a pickle.
    ShapeError: matrices whose ranks are not the config's.
)doc")
      .def("save", &Adapter::save, py::arg("folder"), py::call_guard<py::gil_scoped_release>(), R"doc(
Writes adapter_config.json and adapter_model.safetensors, which peft reads.

Raises:
    IoError: the folder cannot be written to.
)doc")
      .def_property_readonly("base_hash", &Adapter::base_hash,
                             "Hash of the model that it was trained on; empty where that is not known.")
      .def_property_readonly("base_model", &Adapter::base_model,
                             "As the adapter's config names it, or empty.")
      .def_property_readonly("hash", &Adapter::hash, "Hex SHA-256 of every number in it.")
      .def_property_readonly("n_params", &Adapter::n_params)
      .def_property_readonly(
          "modules",
          [](const Adapter& self) {
            std::vector<std::string> names;
            for (const auto& [name, module] : self.modules()) names.push_back(name);
            return names;
          },
          "The modules it has a product for, by their names in the trained model.")
      .def("__repr__", [](const Adapter& self) {
        return concat("Adapter(", self.modules().size(), " modules, ", self.n_params(), " parameters, of '",
                      self.base_model(), "')");
      });
}

}  // namespace introspect::python

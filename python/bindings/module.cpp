#include "bindings.h"

#include <cstring>

#include "call_errors.h"

#include "introspect/core/error.h"
#include "introspect/version.h"

namespace {

/// py::register_exception for messages that need not be UTF-8, because they name files.
template <typename E>
py::handle register_error(py::module_& m, const char* name, py::handle base) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::exception<E>> type;
  type.call_once_and_store_result([&] { return py::exception<E>(m, name, base); });
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const E& error) {
      const auto length = static_cast<Py_ssize_t>(std::strlen(error.what()));
      const auto message =
          py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(error.what(), length, "surrogateescape"));
      py::set_error(type.get_stored(), message);
    }
  });
  return type.get_stored();
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native part of introspect: see the package's own modules for the public names.";
  py::module_::import(
      "torch");  // registers the Python types of the dtypes that stand among the defaults below
  const auto error = register_error<introspect::Error>(m, "Error", PyExc_RuntimeError);
  register_error<introspect::ShapeError>(m, "ShapeError", error);
  register_error<introspect::ConfigError>(m, "ConfigError", error);
  register_error<introspect::IoError>(m, "IoError", error);
  register_error<introspect::HookError>(m, "HookError", error);
  m.attr("__version__") = INTROSPECT_VERSION;
  m.attr("built_with_torch") = INTROSPECT_BUILT_WITH_TORCH;

  // In the order in which the modules use one another's types.
  namespace python = introspect::python;
  python::bind_io(m);
  python::bind_torch_zip(m);
  python::bind_text(m);
  python::bind_ops(m);
  python::bind_hooks(m);
  python::bind_cache(m);
  python::bind_models(m);
  python::bind_analysis(m);
  python::bind_attribution(m);
  python::bind_heads(m);
  python::bind_metrics(m);
  python::bind_engine(m);
  python::bind_graph(m);
  python::bind_lenses(m);
  python::bind_patching(m);
  python::bind_path_patching(m);
  python::bind_attribution_patching(m);
  python::bind_circuits(m);
  python::bind_steering(m);
  python::bind_apply(m);
  python::bind_experiments(m);
  python::bind_dose(m);
  python::bind_answers(m);
  python::bind_statistics(m);
  python::bind_probes(m);
  python::bind_erasure(m);
  python::bind_dictionary(m);
  python::bind_cross_layer_transcoder(m);
  python::bind_dictionary_files(m);
  python::bind_attribution_graph(m);
  python::bind_qk_attribution(m);
  python::bind_dictionary_training(m);
  python::bind_cross_layer_trainer(m);
  python::bind_splice(m);
  python::bind_activation_streams(m);
  python::bind_dictionary_evaluation(m);
  python::bind_feature_statistics(m);
  python::bind_lora_training(m);
  python::explain_call_errors(m);
}

#pragma once

#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <torch/csrc/utils/pybind.h>

#include "introspect/core/progress.h"

namespace py = pybind11;

namespace introspect::python {

// One function a module of cpp/, in its own bind_<module>.cpp.
void bind_io(py::module_& m);
void bind_text(py::module_& m);
void bind_ops(py::module_& m);
void bind_hooks(py::module_& m);
void bind_cache(py::module_& m);
void bind_models(py::module_& m);
void bind_analysis(py::module_& m);
void bind_engine(py::module_& m);
void bind_graph(py::module_& m);
void bind_steering(py::module_& m);
void bind_experiments(py::module_& m);
void bind_statistics(py::module_& m);

// Parts of a module that have a file of their own.
void bind_operators(py::module_& m);
void bind_interventions(py::module_& m);
void bind_apply(py::module_& m);
void bind_attribution(py::module_& m);
void bind_heads(py::module_& m);
void bind_metrics(py::module_& m);
void bind_patching(py::module_& m);
void bind_path_patching(py::module_& m);
void bind_attribution_patching(py::module_& m);
void bind_circuits(py::module_& m);
void bind_erasure(py::module_& m);
void bind_probes(py::module_& m);
void bind_lenses(py::module_& m);
void bind_torch_zip(py::module_& m);
void bind_dictionary(py::module_& m);
void bind_cross_layer_transcoder(py::module_& m);
void bind_dictionary_files(py::module_& m);
void bind_dictionary_training(py::module_& m);
void bind_cross_layer_trainer(py::module_& m);
void bind_dictionary_evaluation(py::module_& m);
void bind_feature_statistics(py::module_& m);
void bind_activation_streams(py::module_& m);
void bind_splice(py::module_& m);
void bind_attribution_graph(py::module_& m);
void bind_qk_attribution(py::module_& m);
void bind_dose(py::module_& m);
void bind_answers(py::module_& m);
void bind_lora_training(py::module_& m);

/// A Progress that calls `callback(what, done, total)` unless it is None, and lets Ctrl-C end the work either way.
Progress as_progress(py::object callback);

/// The same with introspect.progress.shown: bars on a terminal where the caller gives none, nothing for False.
Progress as_shown_progress(py::object callback);

}  // namespace introspect::python

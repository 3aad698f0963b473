#include "bindings.h"

#include "introspect/ops/norm.h"
#include "introspect/ops/rotary.h"

namespace introspect::python {

void bind_ops(py::module_& m) {
  m.def("rms_norm", &ops::rms_norm, py::arg("x"), py::arg("weight"), py::kw_only(), py::arg("eps"),
        py::call_guard<py::gil_scoped_release>(), R"doc(
Root-mean-square norm over the last dimension, as in Llama and Qwen2.

Args:
    x: [..., d_model], any floating dtype.
    weight: [d_model].
    eps: added to the mean square.

Returns:
    Same shape and dtype as ``x``; computed in float32, rounded before the weight is applied.

Raises:
    ShapeError: ``weight`` is not [d_model].
)doc");

  m.def(
      "rotary_frequencies",
      [](int64_t d_rotary, double base, const std::string& scaling, double factor, double low_freq_factor,
         double high_freq_factor, double original_max_position) {
        return ops::rotary_frequencies(
            d_rotary, base, {scaling, factor, low_freq_factor, high_freq_factor, original_max_position});
      },
      py::arg("d_rotary"), py::kw_only(), py::arg("base") = 10000.0, py::arg("scaling") = "none",
      py::arg("factor") = 1.0, py::arg("low_freq_factor") = 1.0, py::arg("high_freq_factor") = 4.0,
      py::arg("original_max_position") = 8192.0, R"doc(
The angular frequencies of rotary embedding.

Args:
    d_rotary: width that is rotated, even.
    base: of the geometric series (theta).
    scaling: "none", "linear" (divided by ``factor``) or "llama3" (the other arguments are its own).

Returns:
    float32 [d_rotary / 2], in radians per position.

Raises:
    ConfigError: unknown scaling, or an odd width.

Source: Su et al. 2021, arXiv:2104.09864.
)doc");
}

}  // namespace introspect::python

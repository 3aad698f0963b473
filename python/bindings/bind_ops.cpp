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
         double high_freq_factor, double original_max_position, double beta_fast, double beta_slow,
         bool truncate, std::vector<double> short_factor, std::vector<double> long_factor, double longest) {
        ops::RotaryScaling how;
        how.type = scaling;
        how.factor = factor;
        how.low_freq_factor = low_freq_factor;
        how.high_freq_factor = high_freq_factor;
        how.original_max_position = original_max_position;
        how.beta_fast = beta_fast;
        how.beta_slow = beta_slow;
        how.truncate = truncate;
        how.short_factor = std::move(short_factor);
        how.long_factor = std::move(long_factor);
        how.longest = longest;
        return ops::rotary_frequencies(d_rotary, base, how);
      },
      py::arg("d_rotary"), py::kw_only(), py::arg("base") = 10000.0, py::arg("scaling") = "none",
      py::arg("factor") = 1.0, py::arg("low_freq_factor") = 1.0, py::arg("high_freq_factor") = 4.0,
      py::arg("original_max_position") = 8192.0, py::arg("beta_fast") = 32.0, py::arg("beta_slow") = 1.0,
      py::arg("truncate") = true, py::arg("short_factor") = std::vector<double>{},
      py::arg("long_factor") = std::vector<double>{}, py::arg("longest") = 0.0, R"doc(
The angular frequencies of rotary embedding.

Args:
    d_rotary: width that is rotated, even.
    base: of the geometric series (theta).
    scaling: "none", "linear" (divided by ``factor``), "llama3" (low_freq_factor, high_freq_factor), "yarn" (beta_fast,
        beta_slow, truncate), "longrope" (short_factor, or long_factor where ``longest`` is above
        ``original_max_position``) or "dynamic" (a base that grows with ``longest``, in positions).

Returns:
    float32 [d_rotary / 2], in radians per position.

Raises:
    ConfigError: unknown scaling, or an odd width.

Source: Su et al. 2021, arXiv:2104.09864.
)doc");
}

}  // namespace introspect::python

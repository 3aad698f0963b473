#include "bindings.h"

#include "introspect/core/stage_clock.h"
#include "introspect/ops/bfloat16_products.h"
#include "introspect/ops/linear.h"
#include "introspect/ops/norm.h"
#include "introspect/ops/quantised_rows.h"
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
      "linear",
      [](const torch::Tensor& x, const torch::Tensor& weight, const std::optional<torch::Tensor>& bias) {
        return ops::linear(x, weight, bias.value_or(torch::Tensor()));
      },
      py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(), py::call_guard<py::gil_scoped_release>(),
      R"doc(
x W^T + b over the last dimension, in x's dtype, by the kernels that models use.

Args:
    x: [..., D].
    weight: [N, D].
    bias: [N], or None.

Returns:
    [..., N], summed in float32; where :func:`bfloat16_products` says "tiles" or "pairs", a row of bfloat16 has the same
    bits whatever the number of rows.
)doc");

  using ops::QuantisedRows;
  py::class_<QuantisedRows>(m, "QuantisedRows", R"doc(
A matrix held as a GGUF file holds it: rows of blocks, whose values products unpack on the way.

Args:
    encoding: "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "F16", "BF16", "F32".
    bytes: uint8 [rows, bytes of a row], contiguous on the CPU; used as they are and not copied.
    dtype: of the model that it is a part of.

Raises:
    ConfigError: an encoding that cannot be unpacked.
    ShapeError: rows that are not a whole number of blocks.
)doc")
      .def(py::init<std::string_view, torch::Tensor, torch::ScalarType>(), py::arg("encoding"),
           py::arg("bytes"), py::arg("dtype") = torch::kFloat32)
      .def_static("joined", &QuantisedRows::joined, py::arg("parts"), "The rows of all, one after another.")
      .def_property_readonly(
          "shape", [](const QuantisedRows& self) { return std::pair(self.n_rows(), self.n_columns()); })
      .def_property_readonly("nbytes", &QuantisedRows::nbytes)
      .def("rows", &QuantisedRows::rows, py::arg("first"), py::arg("n"), "Some rows, which share the bytes.")
      .def("dense", &QuantisedRows::dense, py::arg("dtype") = torch::kFloat32,
           py::call_guard<py::gil_scoped_release>(), "The values [rows, columns], rounded once.")
      .def("gather", &QuantisedRows::gather, py::arg("ids"), py::arg("dtype") = torch::kFloat32,
           py::call_guard<py::gil_scoped_release>(), "The values of the rows named by int64 ids.")
      .def(
          "product",
          [](const QuantisedRows& self, const torch::Tensor& x, const std::optional<torch::Tensor>& bias) {
            return self.product(x, bias.value_or(torch::Tensor{}));
          },
          py::arg("x"), py::arg("bias") = py::none(), py::call_guard<py::gil_scoped_release>(), R"doc(
x [..., columns] times the rows, plus bias [rows] or nothing: [..., rows] in x's dtype.

Summed in float32, or float64 for x in float64. Gradients reach x and the bias.
)doc");
  m.def("bfloat16_products_here", &ops::bfloat16_products_here, R"doc(
The ways in which this processor multiplies bfloat16 matrices, the quickest first.

"tiles": AMX. "pairs": AVX512-BF16. "widened": float32 arithmetic. The first two take numbers below 2^-126 for zero, as
these instructions do. Their bits differ from one another: sums are made in another order.
)doc");
  m.def("bfloat16_products", &ops::bfloat16_products, R"doc(
The way in use: the quickest, or the one that the environment variable INTROSPECT_BFLOAT16_PRODUCTS names.

Raises:
    ConfigError: that variable names a way that this processor does not have.
)doc");
  m.def("use_bfloat16_products", &ops::use_bfloat16_products, py::arg("way"), R"doc(
From now on multiply bfloat16 this way, in every thread: to compare ways, or to get another machine's bits.

Returns:
    The way before.

Raises:
    ConfigError: this processor does not have it.
)doc");

  m.def(
      "costs_by_stage",
      [](const std::function<void()>& passes) {
        StageClock clock;
        passes();
        py::dict out;
        for (const auto& cost : clock.costs()) {
          py::dict row;
          row["seconds"] = cost.seconds;
          row["calls"] = cost.calls;
          row["flops"] = cost.work.flops;
          row["bytes"] = cost.work.bytes;
          out[py::str(cost.stage)] = row;
        }
        return out;
      },
      py::arg("passes"), R"doc(
What the forward passes of a call cost, by stage.

Args:
    passes: called once, with nothing.

Returns:
    {stage: {"seconds", "calls", "flops", "bytes"}} for embedding, norms, QKV, rotary, attention, output, MLP products,
    activation, residual, unembedding, readout, hooks and other. The times add up to the call's. flops are those of
    matrix products and attention, bytes the weights, inputs and results, each once.
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

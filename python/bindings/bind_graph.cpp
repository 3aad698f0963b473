#include "bindings.h"

#include "introspect/graph/graph.h"
#include "introspect/ops/logits.h"

namespace introspect::python {
namespace {

using engine::Captured;
using engine::PlanSummary;
using graph::Graph;
using graph::Read;
using graph::RunOptions;

RunOptions run_options(int64_t memory_budget, int64_t most_rows, py::object progress = py::none()) {
  return {memory_budget, most_rows, as_progress(std::move(progress))};
}

py::object as_object(const Captured& captured) {
  return captured.cache ? py::cast(*captured.cache) : py::cast(captured.values);
}

Read read_of(Read::What what, std::vector<int64_t> positions, std::vector<int64_t> layers,
             const std::string& point, std::vector<int64_t> heads, int64_t first_key,
             std::optional<int64_t> last_key) {
  return {what,
          std::move(positions),
          std::move(layers),
          hooks::parse_point(point),
          std::move(heads),
          first_key,
          last_key.value_or(std::numeric_limits<int64_t>::max())};
}

}  // namespace

void bind_graph(py::module_& m) {
  py::class_<PlanSummary>(m, "PlanSummary",
                          "What a graph costs, against running every sequence that is read by itself.")
      .def_readonly("n_pieces", &PlanSummary::n_pieces)
      .def_readonly("n_captures", &PlanSummary::n_captures)
      .def_readonly("n_passes", &PlanSummary::n_passes)
      .def_readonly("token_layers_asked", &PlanSummary::token_layers_asked,
                    "Tokens times layers of the sequences run one by one.")
      .def_readonly("token_layers_to_run", &PlanSummary::token_layers_to_run, "That are run instead.")
      .def_readonly("peak_bytes", &PlanSummary::peak_bytes, "Estimate for the largest pass, weights aside.")
      .def_readonly("blocks_read", &PlanSummary::blocks_read,
                    "From the files of models whose blocks stay there, pass by pass.")
      .def_readonly("bytes_read", &PlanSummary::bytes_read, "What these blocks take in the files.")
      .def_readonly("seconds_to_plan", &PlanSummary::seconds_to_plan);

  py::class_<Graph>(m, "Graph", "The native graph of segments: see ``introspect.Graph``.")
      .def(py::init<>())
      .def(
          "segment",
          [](Graph& self, std::shared_ptr<models::Model> model, const std::vector<int64_t>& tokens,
             std::optional<int64_t> parent, const std::vector<hooks::Intervention>& interventions) {
            const py::gil_scoped_release release;
            return self.segment(model, tokens, parent, interventions);
          },
          py::arg("model"), py::arg("tokens"), py::arg("parent") = py::none(),
          py::arg("interventions") = std::vector<hooks::Intervention>())
      .def("splice", &Graph::splice, py::arg("target"), py::arg("first"), py::arg("last"), py::arg("source"))
      .def(
          "read_activation",
          [](Graph& self, int64_t node, std::vector<int64_t> positions, std::vector<int64_t> layers,
             const std::string& point) {
            return self.read(node, read_of(Read::What::activation, std::move(positions), std::move(layers),
                                           point, {}, 0, {}));
          },
          py::arg("node"), py::kw_only(), py::arg("positions") = std::vector<int64_t>{-1},
          py::arg("layers") = std::vector<int64_t>(), py::arg("point") = "hook_resid_post")
      .def(
          "read_attention",
          [](Graph& self, int64_t node, std::vector<int64_t> positions, std::vector<int64_t> layers,
             std::vector<int64_t> heads, int64_t first_key, std::optional<int64_t> last_key) {
            return self.read(node, read_of(Read::What::attention, std::move(positions), std::move(layers),
                                           "attn.hook_pattern", std::move(heads), first_key, last_key));
          },
          py::arg("node"), py::kw_only(), py::arg("positions") = std::vector<int64_t>{-1},
          py::arg("layers") = std::vector<int64_t>(), py::arg("heads") = std::vector<int64_t>(),
          py::arg("first_key") = 0, py::arg("last_key") = py::none())
      .def(
          "read_cache",
          [](Graph& self, int64_t node) {
            Read read;
            read.what = Read::What::cache;
            return self.read(node, read);
          },
          py::arg("node"))
      .def("__len__", &Graph::size)
      .def_property_readonly("n_reads", &Graph::n_reads)
      .def("length", &Graph::length, py::arg("node"))
      .def("tokens", &Graph::tokens, py::arg("node"))
      .def("hash", &Graph::hash, py::arg("node"))
      .def("svg", &Graph::svg)
      .def(
          "plan",
          [](const Graph& self, int64_t memory_budget, int64_t most_rows) {
            const py::gil_scoped_release release;
            return self.plan({memory_budget, most_rows, {}});
          },
          py::kw_only(), py::arg("memory_budget") = RunOptions{}.memory_budget,
          py::arg("most_rows") = RunOptions{}.most_rows)
      .def(
          "run",
          [](const Graph& self, int64_t memory_budget, int64_t most_rows, py::object progress) {
            const auto options = run_options(memory_budget, most_rows, std::move(progress));
            std::vector<Captured> readings;
            {
              const py::gil_scoped_release release;
              readings = self.run(options);
            }
            py::list out;
            for (const auto& reading : readings) out.append(as_object(reading));
            return out;
          },
          py::kw_only(), py::arg("memory_budget") = RunOptions{}.memory_budget,
          py::arg("most_rows") = RunOptions{}.most_rows, py::arg("progress") = py::none())
      .def(
          "run_each",
          [](const Graph& self, const py::function& on_read, int64_t memory_budget, int64_t most_rows,
             py::object progress) {
            const auto options = run_options(memory_budget, most_rows, std::move(progress));
            const py::gil_scoped_release release;
            self.run(options, [&](std::vector<std::pair<int64_t, Captured>> readings) {
              const py::gil_scoped_acquire acquire;
              for (const auto& [id, captured] : readings) on_read(id, as_object(captured));
            });
          },
          py::arg("on_read"), py::kw_only(), py::arg("memory_budget") = RunOptions{}.memory_budget,
          py::arg("most_rows") = RunOptions{}.most_rows, py::arg("progress") = py::none());

  m.def("set_log_odds", &ops::set_log_odds, py::arg("logits"), py::kw_only(), py::arg("yes"), py::arg("no"),
        py::call_guard<py::gil_scoped_release>(), R"doc(
Log-odds of one set of tokens against another: the log of the sum of exp(logit) over each, yes - no, in nats.

Args:
    logits: [..., d_vocab].
    yes, no: token ids.

Returns:
    float64 [...] on the CPU.

Raises:
    ValueError: an empty set.
    IndexError: ids outside the vocabulary.
)doc");
  m.def("entropy", &ops::entropy, py::arg("logits"), py::call_guard<py::gil_scoped_release>(),
        "Entropy of the next token in nats: [..., d_vocab] -> float64 [...].");
  m.def(
      "kl_divergence",
      [](const torch::Tensor& logits, const torch::Tensor& base) { return ops::kl_divergence(logits, base); },
      py::arg("logits"), py::arg("base_logits"), py::call_guard<py::gil_scoped_release>(),
      "KL(p || base) in nats of two sets of logits [..., d_vocab] -> float64 [...]. Raises ShapeError for "
      "other sizes.");
  m.def("most_changed", &ops::most_changed, py::arg("logits"), py::arg("base_logits"), py::kw_only(),
        py::arg("k"), py::arg("raised") = true, py::call_guard<py::gil_scoped_release>(),
        "The k tokens whose log-probability rose (or fell) most: (changes in nats, ids), for logits "
        "[d_vocab].");
}

}  // namespace introspect::python

#include "bindings.h"

#include "introspect/circuits/acdc.h"
#include "introspect/circuits/circuit.h"
#include "introspect/circuits/edge_attribution.h"
#include "introspect/circuits/run_circuit.h"
#include "introspect/models/model.h"
#include "value_type.h"

namespace introspect::python {

namespace {

using circuits::Ablation;
using circuits::Circuit;
using circuits::EdgeMethod;
using circuits::Nodes;
using models::Model;

Ablation parse_ablation(const std::string& name) {
  if (name == "patching") return Ablation::patching;
  if (name == "zero") return Ablation::zero;
  if (name == "mean") return Ablation::mean;
  if (name == "mean-positional") return Ablation::mean_positional;
  throw std::invalid_argument("ablation must be patching, zero, mean or mean-positional, got '" + name + "'");
}

EdgeMethod parse_edge_method(const std::string& name) {
  if (name == "eap") return EdgeMethod::eap;
  if (name == "eap-ig") return EdgeMethod::eap_ig;
  if (name == "eap-ig-activations") return EdgeMethod::eap_ig_activations;
  if (name == "clean-corrupted") return EdgeMethod::clean_corrupted;
  if (name == "exact") return EdgeMethod::exact;
  throw std::invalid_argument(
      "edge_attribution: method must be eap, eap-ig, eap-ig-activations, clean-corrupted or exact, got '" +
      name + "'");
}

/// What every function takes: prompts [pos] each, and metrics as data or one callable on logits.
circuits::Prompts prompts_of(std::vector<torch::Tensor> clean, std::vector<torch::Tensor> corrupted,
                             std::vector<analysis::Metric> metrics, circuits::LogitsMetric of_logits) {
  return {std::move(clean), std::move(corrupted), std::move(metrics), std::move(of_logits)};
}

using Tensors = std::vector<torch::Tensor>;
using Metrics = std::vector<analysis::Metric>;

void bind_circuit(py::module_& m) {
  py::class_<circuits::Comparison>(m, "CircuitComparison", "How two circuits of one model agree.")
      .def_readonly("n_first", &circuits::Comparison::n_first, "edges of the first")
      .def_readonly("n_second", &circuits::Comparison::n_second)
      .def_readonly("n_both", &circuits::Comparison::n_both)
      .def_readonly("jaccard", &circuits::Comparison::jaccard, "edges in both, of those in either")
      .def_readonly("node_jaccard", &circuits::Comparison::node_jaccard, "likewise of heads and MLPs")
      .def_readonly("spearman", &circuits::Comparison::spearman,
                    "rank correlation of |scores| over all edges of the model");

  py::class_<Circuit> circuit(m, "Circuit", R"doc(
Nodes and edges of a model: see introspect.circuits.Circuit.
)doc");
  circuit
      .def_static(
          "whole",
          [](const models::Config& cfg, bool ungrouped) { return Circuit::whole(Nodes::of(cfg, ungrouped)); },
          py::arg("cfg"), py::kw_only(), py::arg("ungrouped") = false)
      .def_static(
          "of_edges",
          [](const models::Config& cfg, const std::vector<std::string>& names, bool ungrouped) {
            return Circuit::of_edges(Nodes::of(cfg, ungrouped), names);
          },
          py::arg("cfg"), py::arg("names"), py::kw_only(), py::arg("ungrouped") = false)
      .def_readonly("scores", &Circuit::scores)
      .def_readonly("in_graph", &Circuit::in_graph)
      .def_property_readonly("n_edges", &Circuit::n_edges)
      .def_property_readonly("n_possible_edges", [](const Circuit& c) { return c.nodes.n_edges(); })
      .def_property_readonly("n_groups", [](const Circuit& c) { return c.nodes.n_groups; })
      .def_property_readonly("sender_names",
                             [](const Circuit& c) {
                               std::vector<std::string> out;
                               for (int64_t s = 0; s < c.nodes.n_senders(); ++s)
                                 out.push_back(c.nodes.sender_name(s));
                               return out;
                             })
      .def_property_readonly("receiver_names",
                             [](const Circuit& c) {
                               std::vector<std::string> out;
                               for (int64_t r = 0; r < c.nodes.n_receivers(); ++r)
                                 out.push_back(c.nodes.receiver_name(r));
                               return out;
                             })
      .def("senders", &Circuit::senders)
      .def("edges",
           [](const Circuit& c) {
             std::vector<std::tuple<std::string, std::string, double>> out;
             for (const auto& edge : c.edges())
               out.emplace_back(c.nodes.sender_name(edge.sender), c.nodes.receiver_name(edge.receiver),
                                edge.score);
             return out;
           })
      .def(
          "parse_edge", [](const Circuit& c, const std::string& name) { return c.nodes.parse_edge(name); },
          py::arg("name"))
      .def("top", &Circuit::top, py::arg("n"), py::kw_only(), py::arg("absolute") = true,
           py::arg("prune") = true)
      .def("greedy", &Circuit::greedy, py::arg("n"), py::kw_only(), py::arg("absolute") = true,
           py::arg("prune") = true)
      .def("pruned", &Circuit::pruned)
      .def("with_scores", &Circuit::with_scores, py::arg("scores"))
      .def("sender_scores", &Circuit::sender_scores)
      .def("ungrouped", &Circuit::ungrouped)
      .def("to_json", &Circuit::to_json)
      .def_static("from_json", &Circuit::from_json, py::arg("text"))
      .def("save", &Circuit::save, py::arg("path"))
      .def_static("load", &Circuit::load, py::arg("path"))
      .def("check_fits", &Circuit::check_fits, py::arg("cfg"))
      .def("outside", &Circuit::outside, py::arg("activations") = std::map<std::string, torch::Tensor>{})
      .def("svg", &Circuit::svg)
      .def("compare", &circuits::compare, py::arg("other"));
  copy_as_value(circuit);
}

}  // namespace

void bind_circuits(py::module_& m) {
  bind_circuit(m);
  py::class_<circuits::EdgeAttribution>(m, "EdgeAttribution",
                                        "Scores of every edge, and the metric of both runs.")
      .def_readonly("circuit", &circuits::EdgeAttribution::circuit)
      .def_property_readonly("by_position",
                             [](const circuits::EdgeAttribution& a) -> std::optional<torch::Tensor> {
                               return a.by_position.defined() ? std::optional(a.by_position) : std::nullopt;
                             })
      .def_readonly("clean", &circuits::EdgeAttribution::clean)
      .def_property_readonly("corrupted",
                             [](const circuits::EdgeAttribution& a) -> std::optional<torch::Tensor> {
                               return a.corrupted.defined() ? std::optional(a.corrupted) : std::nullopt;
                             });
  m.def(
      "edge_attribution",
      [](const Model& model, Tensors clean, Tensors corrupted, Metrics metrics,
         circuits::LogitsMetric of_logits, const std::string& method, int64_t ig_steps, bool gauss,
         const std::string& ablation, Tensors mean_over, bool per_position, bool ungrouped,
         std::vector<std::string> edges, py::object progress) {
        circuits::EdgeAttributionOptions options;
        options.method = parse_edge_method(method);
        options.ig_steps = ig_steps;
        options.gauss = gauss;
        options.ablation = parse_ablation(ablation);
        options.mean_over = std::move(mean_over);
        options.per_position = per_position;
        options.ungrouped = ungrouped;
        options.edges = std::move(edges);
        options.progress = as_shown_progress(std::move(progress));
        const auto prompts =
            prompts_of(std::move(clean), std::move(corrupted), std::move(metrics), std::move(of_logits));
        const py::gil_scoped_release unlocked;
        return circuits::edge_attribution(model, prompts, options);
      },
      py::arg("model"), py::arg("clean"), py::arg("corrupted"), py::arg("metrics"), py::kw_only(),
      py::arg("of_logits") = nullptr, py::arg("method") = "eap", py::arg("ig_steps") = 5,
      py::arg("gauss") = false, py::arg("ablation") = "patching", py::arg("mean_over") = Tensors{},
      py::arg("per_position") = false, py::arg("ungrouped") = false,
      py::arg("edges") = std::vector<std::string>{}, py::arg("progress") = py::none(),
      "Scores of edges: see introspect.circuits.edge_attribution. Prompts are int64 [pos] each.");
  m.def(
      "run_circuits",
      [](const Model& model, Tensors clean, Tensors corrupted, Metrics metrics,
         const std::vector<Circuit>& circuits, circuits::LogitsMetric of_logits, const std::string& ablation,
         Tensors mean_over, py::object progress) {
        circuits::RunCircuitOptions options;
        options.ablation = parse_ablation(ablation);
        options.mean_over = std::move(mean_over);
        options.progress = as_shown_progress(std::move(progress));
        const auto prompts =
            prompts_of(std::move(clean), std::move(corrupted), std::move(metrics), std::move(of_logits));
        const py::gil_scoped_release unlocked;
        return circuits::run_circuits(model, prompts, circuits, options);
      },
      py::arg("model"), py::arg("clean"), py::arg("corrupted"), py::arg("metrics"), py::arg("circuits"),
      py::kw_only(), py::arg("of_logits") = nullptr, py::arg("ablation") = "patching",
      py::arg("mean_over") = Tensors{}, py::arg("progress") = py::none(),
      "The metric of each circuit and prompt, float64 [circuits, prompts]: see "
      "introspect.circuits.run_circuit.");
  py::class_<circuits::Faithfulness>(m, "Faithfulness", "How much of the metric the best edges keep.")
      .def_readonly("shares", &circuits::Faithfulness::shares)
      .def_readonly("n_edges", &circuits::Faithfulness::n_edges)
      .def_readonly("metric", &circuits::Faithfulness::metric)
      .def_readonly("faithfulness", &circuits::Faithfulness::faithfulness)
      .def_readonly("full", &circuits::Faithfulness::full)
      .def_readonly("empty", &circuits::Faithfulness::empty)
      .def_readonly("cpr", &circuits::Faithfulness::cpr)
      .def_readonly("cmd", &circuits::Faithfulness::cmd);
  m.def(
      "faithfulness",
      [](const Model& model, Tensors clean, Tensors corrupted, Metrics metrics, const Circuit& circuit,
         circuits::LogitsMetric of_logits, std::vector<double> shares, bool absolute,
         const std::string& ablation, Tensors mean_over, py::object progress) {
        circuits::FaithfulnessOptions options;
        if (!shares.empty()) options.shares = std::move(shares);
        options.absolute = absolute;
        options.ablation = parse_ablation(ablation);
        options.mean_over = std::move(mean_over);
        options.progress = as_shown_progress(std::move(progress));
        const auto prompts =
            prompts_of(std::move(clean), std::move(corrupted), std::move(metrics), std::move(of_logits));
        const py::gil_scoped_release unlocked;
        return circuits::faithfulness(model, prompts, circuit, options);
      },
      py::arg("model"), py::arg("clean"), py::arg("corrupted"), py::arg("metrics"), py::arg("circuit"),
      py::kw_only(), py::arg("of_logits") = nullptr, py::arg("shares") = std::vector<double>{},
      py::arg("absolute") = true, py::arg("ablation") = "patching", py::arg("mean_over") = Tensors{},
      py::arg("progress") = py::none(),
      "The curve of a circuit's scores: see introspect.circuits.faithfulness.");
  m.def(
      "acdc",
      [](const Model& model, Tensors clean, Tensors corrupted, Metrics metrics, double threshold,
         circuits::LogitsMetric of_logits, const std::optional<Circuit>& start, bool ungrouped,
         const std::string& ablation, Tensors mean_over, py::object progress) {
        circuits::AcdcOptions options;
        options.threshold = threshold;
        options.start = start;
        options.ungrouped = ungrouped;
        options.ablation = parse_ablation(ablation);
        options.mean_over = std::move(mean_over);
        options.progress = as_shown_progress(std::move(progress));
        const auto prompts =
            prompts_of(std::move(clean), std::move(corrupted), std::move(metrics), std::move(of_logits));
        const py::gil_scoped_release unlocked;
        const auto found = circuits::acdc(model, prompts, options);
        return std::make_tuple(found.circuit, found.n_runs, found.metric);
      },
      py::arg("model"), py::arg("clean"), py::arg("corrupted"), py::arg("metrics"), py::arg("threshold"),
      py::kw_only(), py::arg("of_logits") = nullptr, py::arg("start") = py::none(),
      py::arg("ungrouped") = false, py::arg("ablation") = "patching", py::arg("mean_over") = Tensors{},
      py::arg("progress") = py::none(),
      "Automatic circuit discovery: the circuit, how many were run, and its metric. See "
      "introspect.circuits.acdc.");
}

}  // namespace introspect::python

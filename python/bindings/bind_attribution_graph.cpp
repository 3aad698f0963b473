#include "bindings.h"

#include "introspect/circuits/attribute.h"
#include "introspect/circuits/attribution_graph.h"
#include "introspect/models/model.h"
#include "transcoder_input.h"
#include "value_type.h"

namespace introspect::python {

namespace {

using circuits::AttributionGraph;
using circuits::GraphNode;
using models::Model;
using NoGil = py::call_guard<py::gil_scoped_release>;

circuits::GraphNodeKind parse_kind(const std::string& name) {
  for (int kind = 0; kind <= static_cast<int>(circuits::GraphNodeKind::injection); ++kind)
    if (circuits::to_string(static_cast<circuits::GraphNodeKind>(kind)) == name)
      return static_cast<circuits::GraphNodeKind>(kind);
  throw std::invalid_argument("a node's kind must be feature, error, token, bias, logit or injection, got '" +
                              name + "'");
}

circuits::FeatureSite parse_site(const std::string& name) {
  for (const auto site :
       {circuits::FeatureSite::attention, circuits::FeatureSite::mlp, circuits::FeatureSite::residual})
    if (circuits::to_string(site) == name) return site;
  throw std::invalid_argument("a node's site must be attention, mlp or residual, got '" + name + "'");
}

py::dict columns(const AttributionGraph& graph) {
  py::list kinds, sites, layers, positions, features, values, names;
  for (const auto& node : graph.nodes) {
    kinds.append(circuits::to_string(node.kind));
    sites.append(circuits::to_string(node.site));
    layers.append(node.layer);
    positions.append(node.position);
    features.append(node.feature);
    values.append(node.value);
    names.append(node.name);
  }
  py::dict out;
  out["kind"] = kinds;
  out["layer"] = layers;
  out["position"] = positions;
  out["feature"] = features;
  out["value"] = values;
  out["name"] = names;
  out["site"] = sites;
  return out;
}

void bind_graph_type(py::module_& m) {
  py::class_<GraphNode>(m, "GraphNode", R"doc(
A node of an attribution graph.

``kind``: feature, error, token, bias, injection or logit; ``layer``: -1 of tokens, n_layers of targets; ``position``: -1 of biases;
``feature``: its number in the transcoder, the token's id of tokens and logits, -1 else; ``value``: the activation of a feature,
the probability (or weight) of a target; ``name``: the text of tokens and targets; ``site``: of features and errors, attention
(what it adds), mlp or residual (the stream after the block); ``depth``: edges lead to higher ones.
)doc")
      .def(py::init([](const std::string& kind, int64_t layer, int64_t position, int64_t feature,
                       double value, std::string name, const std::string& site) {
             return GraphNode{parse_kind(kind), layer,           position, feature, value,
                              std::move(name),  parse_site(site)};
           }),
           py::arg("kind"), py::arg("layer"), py::arg("position") = -1, py::arg("feature") = -1,
           py::arg("value") = 0.0, py::arg("name") = "", py::arg("site") = "mlp")
      .def_property_readonly("kind", [](const GraphNode& node) { return circuits::to_string(node.kind); })
      .def_property_readonly("site", [](const GraphNode& node) { return circuits::to_string(node.site); })
      .def_property_readonly("depth", &GraphNode::depth)
      .def_readonly("layer", &GraphNode::layer)
      .def_readonly("position", &GraphNode::position)
      .def_readonly("feature", &GraphNode::feature)
      .def_readonly("value", &GraphNode::value)
      .def_readonly("name", &GraphNode::name)
      .def("__eq__", [](const GraphNode& a, const GraphNode& b) { return a == b; })
      .def("__repr__", [](const GraphNode& node) {
        return "GraphNode(" + circuits::to_string(node.kind) + ", layer=" + std::to_string(node.layer) +
               ", position=" + std::to_string(node.position) + ", feature=" + std::to_string(node.feature) +
               (node.site == circuits::FeatureSite::mlp ? "" : ", site=" + circuits::to_string(node.site)) +
               (node.name.empty() ? ")" : ", " + py::repr(py::str(node.name)).cast<std::string>() + ")");
      });

  py::class_<AttributionGraph> type(m, "AttributionGraph", "See introspect.circuits.AttributionGraph.");
  copy_as_value(type);
  type.def(py::init([](std::vector<GraphNode> nodes, std::vector<int64_t> targets,
                       const torch::Tensor& offsets, const torch::Tensor& sources,
                       const torch::Tensor& weights, std::string model_name, std::string model_hash,
                       std::string prompt, std::vector<int64_t> tokens, std::vector<std::string> token_texts,
                       std::string transcoders, const py::object& notes) {
             AttributionGraph graph{std::move(model_name),
                                    std::move(model_hash),
                                    std::move(prompt),
                                    std::move(tokens),
                                    std::move(token_texts),
                                    std::move(transcoders),
                                    py::module_::import("json").attr("dumps")(notes).cast<std::string>(),
                                    std::move(nodes),
                                    std::move(targets),
                                    offsets.contiguous(),
                                    sources.contiguous(),
                                    weights.contiguous()};
             graph.check();
             return graph;
           }),
           py::arg("nodes"), py::arg("targets"), py::arg("offsets"), py::arg("sources"), py::arg("weights"),
           py::kw_only(), py::arg("model_name") = "", py::arg("model_hash") = "", py::arg("prompt") = "",
           py::arg("tokens") = std::vector<int64_t>{}, py::arg("token_texts") = std::vector<std::string>{},
           py::arg("transcoders") = "", py::arg("notes") = py::dict(), R"doc(
A graph of nodes and edges: row i is of node targets[i], its entries offsets[i] to offsets[i + 1] of sources and weights.

Raises:
    ValueError: edges that do not go to a later layer and no earlier position, or nodes that stand twice.
)doc")
      .def_readonly("model_name", &AttributionGraph::model_name)
      .def_readonly("model_hash", &AttributionGraph::model_hash)
      .def_readonly("prompt", &AttributionGraph::prompt)
      .def_readonly("tokens", &AttributionGraph::tokens)
      .def_readonly("token_texts", &AttributionGraph::token_texts)
      .def_readonly("transcoders", &AttributionGraph::transcoders)
      .def_property_readonly(
          "notes",
          [](const AttributionGraph& g) { return py::module_::import("json").attr("loads")(g.notes); })
      .def_readonly("nodes", &AttributionGraph::nodes)
      .def_property_readonly("columns", &columns)
      .def_readonly("targets", &AttributionGraph::targets)
      .def_readonly("offsets", &AttributionGraph::offsets)
      .def_readonly("sources", &AttributionGraph::sources)
      .def_readonly("weights", &AttributionGraph::weights)
      .def_property_readonly("n_nodes", &AttributionGraph::n_nodes)
      .def_property_readonly("n_edges", &AttributionGraph::n_edges)
      .def("adjacency", &AttributionGraph::adjacency, NoGil())
      .def("in_sums", &AttributionGraph::in_sums, NoGil())
      .def(
          "influence", [](const AttributionGraph& g, bool biases) { return g.influence({biases}); },
          py::kw_only(), py::arg("biases") = false, NoGil())
      .def(
          "scores",
          [](const AttributionGraph& g, bool biases) {
            const auto scores = g.scores({biases});
            return std::make_pair(scores.replacement, scores.completeness);
          },
          py::kw_only(), py::arg("biases") = false, NoGil())
      .def(
          "pruned",
          [](const AttributionGraph& g, double node_threshold, double edge_threshold, bool biases) {
            return g.pruned({{biases}, node_threshold, edge_threshold});
          },
          py::kw_only(), py::arg("node_threshold") = 0.8, py::arg("edge_threshold") = 0.98,
          py::arg("biases") = false, NoGil())
      .def("subgraph", &AttributionGraph::subgraph, py::arg("keep"), NoGil())
      .def(
          "paths",
          [](const AttributionGraph& g, int64_t from, int64_t to, int64_t n) {
            std::vector<std::pair<std::vector<int64_t>, double>> out;
            for (auto& path : g.paths(from, to, n)) out.emplace_back(std::move(path.nodes), path.weight);
            return out;
          },
          py::arg("source"), py::arg("target"), py::arg("n") = 10, NoGil())
      .def(
          "find",
          [](const AttributionGraph& g, const std::string& kind, int64_t layer, int64_t position,
             int64_t feature, const std::string& site) {
            return g.find(parse_kind(kind), layer, position, feature, parse_site(site));
          },
          py::arg("kind"), py::arg("layer"), py::arg("position") = -1, py::arg("feature") = -1,
          py::arg("site") = "mlp")
      .def("save", &AttributionGraph::save, py::arg("path"), NoGil())
      .def_static("load", &AttributionGraph::load, py::arg("path"), NoGil())
      .def("to_json", &AttributionGraph::to_json, py::arg("slug"), py::arg("scan"), py::kw_only(),
           py::arg("biases") = false, NoGil())
      .def_static("from_json", &AttributionGraph::from_json, py::arg("text"), NoGil());
}

/// A function of what attribute takes.
template <typename Function>
void bind_with_arguments(py::module_& m, const char* name, const Function& function, const char* doc) {
  m.def(
      name,
      [function](const std::shared_ptr<Model>& model, const torch::Tensor& tokens,
                 std::map<int64_t, sae::Dictionary> transcoders,
                 std::optional<sae::CrossLayerTranscoder> cross_layer, std::vector<sae::Dictionary> saes,
                 const std::optional<std::string>& input, std::string name, double logit_mass,
                 int64_t max_logits, std::vector<circuits::GraphTarget> targets,
                 std::vector<circuits::Injection> injections, int64_t max_features, int64_t edges_per_row,
                 bool fold, bool mask_first, int64_t rows_per_batch, int64_t batches_per_update,
                 int64_t memory_budget, const std::string& rows_folder, double time_budget,
                 const py::object& progress) {
        const circuits::Transcoders dictionaries{std::move(transcoders), std::move(cross_layer),
                                                 parse_input(input), std::move(name), std::move(saes)};
        const circuits::AttributeOptions options{logit_mass,
                                                 max_logits,
                                                 std::move(targets),
                                                 std::move(injections),
                                                 max_features,
                                                 edges_per_row,
                                                 fold,
                                                 mask_first,
                                                 rows_per_batch,
                                                 batches_per_update,
                                                 memory_budget,
                                                 rows_folder,
                                                 time_budget,
                                                 as_shown_progress(progress)};
        const py::gil_scoped_release release;
        return function(*model, tokens, dictionaries, options);
      },
      py::arg("model"), py::arg("tokens"), py::kw_only(), py::arg("transcoders"),
      py::arg("cross_layer") = py::none(), py::arg("saes") = std::vector<sae::Dictionary>{},
      py::arg("input") = py::none(), py::arg("name") = "", py::arg("logit_mass") = 0.95,
      py::arg("max_logits") = 10, py::arg("targets") = std::vector<circuits::GraphTarget>{},
      py::arg("injections") = std::vector<circuits::Injection>{}, py::arg("max_features") = 7500,
      py::arg("edges_per_row") = 4096, py::arg("fold") = true, py::arg("mask_first") = true,
      py::arg("rows_per_batch") = 128, py::arg("batches_per_update") = 8,
      py::arg("memory_budget") = int64_t{2} << 30, py::arg("rows_folder") = "", py::arg("time_budget") = 0.0,
      py::arg("progress") = py::none(), doc);
}

void bind_attribute(py::module_& m) {
  py::class_<circuits::AttributionPlan>(m, "AttributionPlan", R"doc(
What a graph takes: ``active_features``, ``rows`` of features at most, ``rows_per_batch``, ``seconds`` for them and ``bytes``
beside model and dictionaries.
)doc")
      .def_readonly("active_features", &circuits::AttributionPlan::active_features)
      .def_readonly("rows", &circuits::AttributionPlan::rows)
      .def_readonly("rows_per_batch", &circuits::AttributionPlan::rows_per_batch)
      .def_readonly("seconds", &circuits::AttributionPlan::seconds)
      .def_readonly("bytes", &circuits::AttributionPlan::bytes);
  bind_with_arguments(m, "attribute", &circuits::attribute,
                      "The attribution graph of one prompt: see introspect.circuits.attribute.");
  bind_with_arguments(m, "plan_attribution", &circuits::plan_attribution,
                      "What attribute would take: see introspect.circuits.attribute.");
}

}  // namespace

void bind_attribution_graph(py::module_& m) {
  bind_graph_type(m);
  py::class_<circuits::GraphTarget>(m, "GraphTarget",
                                    "What a graph explains: see introspect.circuits.GraphTarget.")
      .def(py::init([](std::string name, torch::Tensor direction, std::optional<int64_t> layer,
                       int64_t position, double weight) {
             return circuits::GraphTarget{std::move(name), std::move(direction), layer, position, weight};
           }),
           py::arg("name"), py::arg("direction"), py::kw_only(), py::arg("layer") = py::none(),
           py::arg("position") = -1, py::arg("weight") = 1.0, R"doc(
Args:
    name: what pages and tables call it.
    direction: [d_model]; dotted with the stream after block ``layer``, or, without one, with the stream after the final norm
        (less its bias), as a row of the unembedding is.
    position: of the prompt; negative: from its end.
    weight: its share of influence, above 0.
)doc")
      .def_readonly("name", &circuits::GraphTarget::name)
      .def_readonly("direction", &circuits::GraphTarget::direction_D)
      .def_readonly("layer", &circuits::GraphTarget::layer)
      .def_readonly("position", &circuits::GraphTarget::position)
      .def_readonly("weight", &circuits::GraphTarget::weight);

  py::class_<circuits::Injection>(m, "Injection", R"doc(
A vector that is added to the stream after a block at some positions, as an experiment injects a concept.
)doc")
      .def(py::init([](int64_t layer, std::vector<int64_t> positions, torch::Tensor vector) {
             return circuits::Injection{layer, std::move(positions), std::move(vector)};
           }),
           py::arg("layer"), py::arg("positions"), py::arg("vector"), R"doc(
Args:
    layer: of the block after which it is added.
    positions: of the prompt, from 0.
    vector: [d_model].
)doc")
      .def_readonly("layer", &circuits::Injection::layer)
      .def_readonly("positions", &circuits::Injection::positions)
      .def_readonly("vector", &circuits::Injection::vector_D);

  bind_attribute(m);
}

}  // namespace introspect::python

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <numeric>
#include <queue>
#include <set>
#include <stdexcept>
#include <tuple>

#include <ATen/ATen.h>

#include "introspect/circuits/attribution_graph.h"
#include "introspect/core/check.h"

namespace introspect::circuits {

namespace {

/// The node that each edge leads to, int64 [entries].
torch::Tensor target_of_edges(const AttributionGraph& graph) {
  const auto counts = graph.offsets.slice(0, 1) - graph.offsets.slice(0, 0, -1);
  return at::repeat_interleave(at::tensor(graph.targets, at::kLong), counts);
}

struct Edges {
  const int64_t* offsets;
  const int64_t* sources;
  std::vector<double> shares;  // |weight| over the row's sum, of nodes that count
};

std::vector<bool> counted(const AttributionGraph& graph, const InfluenceOptions& options) {
  std::vector<bool> out;
  for (const auto& node : graph.nodes) out.push_back(options.biases || node.kind != GraphNodeKind::bias);
  return out;
}

Edges edges_of(const AttributionGraph& graph, const std::vector<bool>& counts) {
  Edges out{graph.offsets.const_data_ptr<int64_t>(), graph.sources.const_data_ptr<int64_t>(), {}};
  const auto weights = graph.weights.to(torch::kFloat64).contiguous();
  const auto* w = weights.const_data_ptr<double>();
  out.shares.resize(static_cast<size_t>(graph.n_edges()));
  for (size_t row = 0; row < graph.targets.size(); ++row) {
    double sum = 0;
    for (int64_t e = out.offsets[row]; e < out.offsets[row + 1]; ++e)
      if (counts[size_t(out.sources[e])]) sum += std::abs(w[e]);
    for (int64_t e = out.offsets[row]; e < out.offsets[row + 1]; ++e)
      out.shares[size_t(e)] = counts[size_t(out.sources[e])] ? std::abs(w[e]) / std::max(sum, 1e-10) : 0.0;
  }
  return out;
}

/// Rows from the deepest node down: a node's influence is known before its turn.
std::vector<size_t> rows_downwards(const AttributionGraph& graph) {
  std::vector<size_t> order(graph.targets.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto depth = [&](size_t row) { return graph.nodes[size_t(graph.targets[row])].depth(); };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return depth(a) > depth(b); });
  return order;
}

std::vector<double> target_weights(const AttributionGraph& graph) {
  std::vector<double> out(graph.nodes.size(), 0.0);
  for (size_t i = 0; i < out.size(); ++i)
    if (graph.nodes[i].kind == GraphNodeKind::logit) out[i] = graph.nodes[i].value;
  return out;
}

std::vector<double> influence_of(const AttributionGraph& graph, const Edges& edges) {
  const auto w = target_weights(graph);
  std::vector<double> v(graph.nodes.size(), 0.0);
  for (const auto row : rows_downwards(graph)) {
    const auto target = size_t(graph.targets[row]);
    for (int64_t e = edges.offsets[row]; e < edges.offsets[row + 1]; ++e)
      v[size_t(edges.sources[e])] += (v[target] + w[target]) * edges.shares[size_t(e)];
  }
  return v;
}

/// The smallest value such that what is at least it holds the share of the sum.
double threshold_of(const std::vector<double>& values, double share) {
  auto sorted = values;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const double all = std::accumulate(sorted.begin(), sorted.end(), 0.0);
  double sum = 0;
  for (const double value : sorted) {
    sum += value;
    if (sum >= share * all) return value;
  }
  return sorted.empty() ? 0 : sorted.back();
}

/// The graph of the edges that `keep` says, and of the nodes that it says.
AttributionGraph reduced(const AttributionGraph& graph, const std::vector<bool>& nodes,
                         const std::vector<bool>& edges) {
  AttributionGraph out = graph;
  out.nodes.clear();
  out.targets.clear();
  std::vector<int64_t> number(graph.nodes.size(), -1), offsets{0}, kept, sources;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    if (!nodes[i]) continue;
    number[i] = out.n_nodes();
    out.nodes.push_back(graph.nodes[i]);
  }
  const auto* bounds = graph.offsets.const_data_ptr<int64_t>();
  const auto* from = graph.sources.const_data_ptr<int64_t>();
  for (size_t row = 0; row < graph.targets.size(); ++row) {
    if (!nodes[size_t(graph.targets[row])]) continue;
    for (int64_t e = bounds[row]; e < bounds[row + 1]; ++e) {
      if (!edges[size_t(e)] || !nodes[size_t(from[e])]) continue;
      kept.push_back(e);
      sources.push_back(number[size_t(from[e])]);
    }
    out.targets.push_back(number[size_t(graph.targets[row])]);
    offsets.push_back(static_cast<int64_t>(kept.size()));
  }
  out.offsets = at::tensor(offsets, at::kLong);
  out.sources = at::tensor(sources, at::kLong);
  out.weights = graph.weights.index_select(0, at::tensor(kept, at::kLong));
  return out;
}

}  // namespace

std::string to_string(GraphNodeKind kind) {
  switch (kind) {
    case GraphNodeKind::feature:
      return "feature";
    case GraphNodeKind::error:
      return "error";
    case GraphNodeKind::token:
      return "token";
    case GraphNodeKind::bias:
      return "bias";
    case GraphNodeKind::logit:
      return "logit";
    case GraphNodeKind::injection:
      return "injection";
  }
  throw std::logic_error("circuits: a kind of node without a name");
}

std::string to_string(FeatureSite site) {
  switch (site) {
    case FeatureSite::attention:
      return "attention";
    case FeatureSite::mlp:
      return "mlp";
    case FeatureSite::residual:
      return "residual";
  }
  throw std::logic_error("circuits: a site without a name");
}

int64_t GraphNode::depth() const {
  const auto within = [&]() -> int64_t {
    if (kind == GraphNodeKind::token) return 3;
    if (kind == GraphNodeKind::injection) return 2;
    if (kind != GraphNodeKind::feature && kind != GraphNodeKind::error) return 0;
    return site == FeatureSite::attention ? 0 : site == FeatureSite::mlp ? 1 : 3;
  };
  return 4 * layer + within();
}

void AttributionGraph::check() const {
  const auto who = "AttributionGraph: ";
  const auto index = [](const torch::Tensor& x) {
    return x.defined() && x.dim() == 1 && x.scalar_type() == torch::kLong && x.is_cpu() && x.is_contiguous();
  };
  introspect::check<std::invalid_argument>(
      index(offsets) && index(sources) && weights.defined() && weights.dim() == 1 && weights.is_cpu() &&
          weights.is_floating_point() && offsets.size(0) == static_cast<int64_t>(targets.size()) + 1 &&
          weights.size(0) == sources.size(0),
      who, "edges must be offsets [targets + 1], sources and weights [entries]");
  introspect::check<std::invalid_argument>(at::isfinite(weights).all().item<bool>(), who,
                                           "weights must be finite");
  const auto* bounds = offsets.const_data_ptr<int64_t>();
  const auto* from = sources.const_data_ptr<int64_t>();
  introspect::check<std::invalid_argument>(bounds[0] == 0 && bounds[targets.size()] == n_edges(), who,
                                           "offsets must begin at 0 and end at the number of edges");
  std::set<std::tuple<GraphNodeKind, int64_t, int64_t, int64_t, FeatureSite>> seen;
  constexpr int64_t kMostLayers = 100'000, kMost = int64_t{1} << 31;
  for (const auto& node : nodes) {
    introspect::check<std::invalid_argument>(std::isfinite(node.value), who,
                                             "values of nodes must be finite");
    const bool is_nowhere = node.kind == GraphNodeKind::bias || node.kind == GraphNodeKind::injection;
    introspect::check<std::invalid_argument>(
        node.layer >= -1 && node.layer < kMostLayers && std::abs(node.feature) < kMost &&
            (is_nowhere ? node.position == -1 : node.position >= 0 && node.position < kMost),
        who, "a ", to_string(node.kind), " must be of a layer, position and number that there can be, got ",
        node.layer, ", ", node.position, " and ", node.feature);
    introspect::check<std::invalid_argument>(
        seen.emplace(node.kind, node.layer, node.position, node.feature, node.site).second, who, "a ",
        to_string(node.kind), " of layer ", node.layer, ", position ", node.position, ", number ",
        node.feature, " stands twice");
  }
  std::set<int64_t> rows;
  for (size_t row = 0; row < targets.size(); ++row) {
    introspect::check<std::invalid_argument>(targets[row] >= 0 && targets[row] < n_nodes() &&
                                                 rows.insert(targets[row]).second &&
                                                 bounds[row] <= bounds[row + 1],
                                             who, "rows must be of one node each");
    const auto& target = nodes[size_t(targets[row])];
    for (int64_t e = bounds[row]; e < bounds[row + 1]; ++e) {
      introspect::check<std::invalid_argument>(from[e] >= 0 && from[e] < n_nodes(), who,
                                               "an edge comes from node ", from[e], " of ", n_nodes());
      const auto& source = nodes[size_t(from[e])];
      const bool is_before =
          source.kind == GraphNodeKind::bias ? source.layer <= target.layer : source.depth() < target.depth();
      introspect::check<std::invalid_argument>(is_before && source.kind != GraphNodeKind::logit &&
                                                   source.position <= std::max(target.position, int64_t{-1}),
                                               who,
                                               "an edge must lead to a later layer and no earlier position");
    }
  }
}

torch::Tensor AttributionGraph::adjacency() const {
  introspect::check<std::invalid_argument>(n_nodes() <= 20000, "AttributionGraph: ", n_nodes(),
                                           " nodes are too many for a matrix; 20,000 are the most");
  const auto rows = target_of_edges(*this);
  return at::zeros({n_nodes(), n_nodes()}, weights.options()).index_put_({rows, sources}, weights);
}

torch::Tensor AttributionGraph::in_sums() const {
  const auto rows = target_of_edges(*this);
  return at::zeros({n_nodes()}, at::kDouble).index_add_(0, rows, weights.to(torch::kFloat64));
}

torch::Tensor AttributionGraph::influence(const InfluenceOptions& options) const {
  const auto v = influence_of(*this, edges_of(*this, counted(*this, options)));
  return at::tensor(v, at::kDouble);
}

GraphScores AttributionGraph::scores(const InfluenceOptions& options) const {
  const auto edges = edges_of(*this, counted(*this, options));
  const auto v = influence_of(*this, edges);
  const auto w = target_weights(*this);
  double tokens_v = 0, errors_v = 0, complete = 0, all = 0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i].kind == GraphNodeKind::token) tokens_v += v[i];
    if (nodes[i].kind == GraphNodeKind::error) errors_v += v[i];
  }
  for (size_t row = 0; row < targets.size(); ++row) {
    const auto target = size_t(targets[row]);
    double from_errors = 0;
    for (int64_t e = edges.offsets[row]; e < edges.offsets[row + 1]; ++e)
      if (nodes[size_t(edges.sources[e])].kind == GraphNodeKind::error)
        from_errors += edges.shares[size_t(e)];
    complete += (v[target] + w[target]) * (1 - from_errors);
  }
  // Nodes without in-edges, which are whole, weigh too.
  std::vector<bool> has_row(nodes.size(), false);
  for (const auto target : targets) has_row[size_t(target)] = true;
  for (size_t i = 0; i < nodes.size(); ++i) {
    all += v[i] + w[i];
    if (!has_row[i]) complete += v[i] + w[i];
  }
  return {tokens_v / std::max(tokens_v + errors_v, 1e-300), complete / std::max(all, 1e-300)};
}

AttributionGraph AttributionGraph::subgraph(const std::vector<int64_t>& keep) const {
  std::vector<bool> kept(nodes.size(), false);
  for (const auto node : keep) {
    introspect::check<std::out_of_range>(node >= 0 && node < n_nodes(), "AttributionGraph: nodes are 0 to ",
                                         n_nodes() - 1, ", got ", node);
    kept[size_t(node)] = true;
  }
  return reduced(*this, kept, std::vector<bool>(size_t(n_edges()), true));
}

AttributionGraph AttributionGraph::pruned(const PruneOptions& options) const {
  for (const double share : {options.node_threshold, options.edge_threshold})
    introspect::check<std::invalid_argument>(share >= 0 && share <= 1,
                                             "AttributionGraph: thresholds must be 0 to 1, got ", share);
  const auto always = [&](size_t i) {
    return nodes[i].kind == GraphNodeKind::token || nodes[i].kind == GraphNodeKind::logit ||
           nodes[i].kind == GraphNodeKind::injection;
  };
  const auto counts = counted(*this, options);
  const auto v = influence_of(*this, edges_of(*this, counts));
  const double least = threshold_of(v, options.node_threshold);
  std::vector<bool> kept(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) kept[i] = always(i) || (counts[i] && v[i] >= least);

  // Edges by their share of what is left, times what runs through their target.
  auto between = kept;
  const auto edges = edges_of(*this, between);
  const auto v_kept = influence_of(*this, edges);
  const auto w = target_weights(*this);
  std::vector<double> score(size_t(n_edges()), 0.0);
  for (size_t row = 0; row < targets.size(); ++row) {
    const auto target = size_t(targets[row]);
    if (!kept[target]) continue;
    for (int64_t e = edges.offsets[row]; e < edges.offsets[row + 1]; ++e)
      score[size_t(e)] = edges.shares[size_t(e)] * (v_kept[target] + w[target]);
  }
  const double least_edge = threshold_of(score, options.edge_threshold);
  std::vector<bool> kept_edges(score.size(), false);
  for (size_t e = 0; e < score.size(); ++e) kept_edges[e] = score[e] > 0 && score[e] >= least_edge;

  // Features that nothing leads to, and features, errors and biases that lead nowhere, go until none is left.
  for (bool changed = true; changed;) {
    changed = false;
    std::vector<int64_t> in(nodes.size(), 0), out(nodes.size(), 0);
    for (size_t row = 0; row < targets.size(); ++row) {
      const auto target = size_t(targets[row]);
      for (int64_t e = edges.offsets[row]; e < edges.offsets[row + 1]; ++e) {
        const auto source = size_t(edges.sources[e]);
        if (!kept_edges[size_t(e)] || !kept[target] || !kept[source]) continue;
        ++in[target];
        ++out[source];
      }
    }
    for (size_t i = 0; i < nodes.size(); ++i) {
      if (!kept[i] || always(i)) continue;
      if (out[i] == 0 || (nodes[i].kind == GraphNodeKind::feature && in[i] == 0)) {
        kept[i] = false;
        changed = true;
      }
    }
  }
  return reduced(*this, kept, kept_edges);
}

std::vector<GraphPath> AttributionGraph::paths(int64_t from, int64_t to, int64_t n) const {
  for (const auto node : {from, to})
    introspect::check<std::out_of_range>(node >= 0 && node < n_nodes(), "AttributionGraph: nodes are 0 to ",
                                         n_nodes() - 1, ", got ", node);
  introspect::check<std::invalid_argument>(n >= 1,
                                           "AttributionGraph: at least one path must be asked for, got ", n);
  const auto edges = edges_of(*this, std::vector<bool>(nodes.size(), true));
  std::map<int64_t, size_t> row_of;
  for (size_t row = 0; row < targets.size(); ++row) row_of[targets[row]] = row;
  // The best way from `from` to each node bounds what a way that goes on downwards from it can still weigh.
  std::vector<double> best(nodes.size(), 0.0);
  best[size_t(from)] = 1;
  auto order = rows_downwards(*this);
  std::reverse(order.begin(), order.end());
  for (const auto row : order) {
    auto& value = best[size_t(targets[row])];
    for (int64_t e = edges.offsets[row]; e < edges.offsets[row + 1]; ++e)
      value = std::max(value, edges.shares[size_t(e)] * best[size_t(edges.sources[e])]);
  }
  struct Partial {
    double bound, weight;
    std::vector<int64_t> nodes;  // from `to` downwards
    bool operator<(const Partial& other) const { return bound < other.bound; }
  };
  std::priority_queue<Partial> open;
  open.push({best[size_t(to)], 1.0, {to}});
  std::vector<GraphPath> out;
  while (!open.empty() && static_cast<int64_t>(out.size()) < n) {
    auto next = open.top();
    open.pop();
    if (next.bound <= 0) break;
    const auto node = next.nodes.back();
    if (node == from) {
      std::reverse(next.nodes.begin(), next.nodes.end());
      out.push_back({std::move(next.nodes), next.weight});
      continue;
    }
    const auto row = row_of.find(node);
    if (row == row_of.end()) continue;
    for (int64_t e = edges.offsets[row->second]; e < edges.offsets[row->second + 1]; ++e) {
      const auto source = edges.sources[e];
      const double weight = next.weight * edges.shares[size_t(e)];
      if (weight * best[size_t(source)] <= 0) continue;
      auto nodes = next.nodes;
      nodes.push_back(source);
      open.push({weight * best[size_t(source)], weight, std::move(nodes)});
    }
  }
  return out;
}

int64_t AttributionGraph::find(GraphNodeKind kind, int64_t layer, int64_t position, int64_t feature,
                               FeatureSite site) const {
  for (size_t i = 0; i < nodes.size(); ++i)
    if (nodes[i].kind == kind && nodes[i].layer == layer && nodes[i].position == position &&
        nodes[i].feature == feature && nodes[i].site == site)
      return static_cast<int64_t>(i);
  throw std::out_of_range(concat("AttributionGraph: there is no ", to_string(kind), " of layer ", layer,
                                 ", position ", position, ", number ", feature));
}

}  // namespace introspect::circuits

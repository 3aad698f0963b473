#include "introspect/circuits/circuit.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <span>

#include "core/on_device.h"
#include "introspect/core/check.h"
#include "introspect/statistics/rank_agreement.h"

namespace introspect::circuits {

namespace {

/// A copy of a circuit's flags, to be written to.
struct Flags {
  explicit Flags(const torch::Tensor& flags) : tensor(flags.clone()), at(tensor.accessor<bool, 2>()) {}
  torch::Tensor tensor;
  at::TensorAccessor<bool, 2> at;
};

Circuit with_flags(const Circuit& circuit, const torch::Tensor& in_graph) {
  return {circuit.nodes, circuit.scores, in_graph};
}

void check_n(const Circuit& circuit, int64_t n) {
  check<std::invalid_argument>(n >= 0 && n <= circuit.nodes.n_edges(), "circuit: of ",
                               circuit.nodes.n_edges(), " edges 0 to all can be taken, got ", n);
}

torch::Tensor ranked_by(const torch::Tensor& scores, bool absolute) {
  return absolute ? scores.abs() : scores;
}

double share(int64_t both, int64_t either) {
  return either == 0 ? 1.0 : static_cast<double>(both) / static_cast<double>(either);
}

}  // namespace

Circuit Circuit::whole(const Nodes& nodes) {
  const auto edges = nodes.edges();
  return {nodes, at::zeros(edges.sizes(), torch::kFloat64), edges};
}

Circuit Circuit::of_edges(const Nodes& nodes, const std::vector<std::string>& names) {
  auto out = whole(nodes);
  out.in_graph = at::zeros_like(out.in_graph);
  for (const auto& name : names) {
    const auto [sender, receiver] = nodes.parse_edge(name);
    out.in_graph[sender][receiver] = true;
  }
  return out;
}

int64_t Circuit::n_edges() const {
  return in_graph.sum().item<int64_t>();
}

std::vector<Circuit::Edge> Circuit::edges() const {
  const auto is_in = in_graph.accessor<bool, 2>();
  const auto score = scores.accessor<double, 2>();
  std::vector<Edge> out;
  for (int64_t s = 0; s < nodes.n_senders(); ++s)
    for (int64_t r = 0; r < nodes.n_receivers(); ++r)
      if (is_in[s][r]) out.push_back({s, r, score[s][r]});
  std::ranges::stable_sort(out, std::ranges::greater(), [](const Edge& e) { return std::abs(e.score); });
  return out;
}

std::vector<int64_t> Circuit::senders() const {
  auto is_in = in_graph.any(1);
  const auto is_read = in_graph.any(0);
  auto sends = is_in.accessor<bool, 1>();
  const auto reads = is_read.accessor<bool, 1>();
  sends[0] = true;
  for (int64_t r = 0; r < nodes.n_receivers(); ++r) {
    const auto fed = nodes.fed_by(r);
    if (reads[r] && fed.n == 1)
      sends[fed.first] = true;  // a group's keys alone do not say which of its heads
  }
  std::vector<int64_t> out;
  for (int64_t s = 0; s < nodes.n_senders(); ++s)
    if (sends[s]) out.push_back(s);
  return out;
}

Circuit Circuit::top(int64_t n, bool absolute, bool prune) const {
  check_n(*this, n);
  const auto edges = nodes.edges();
  const auto places = edges.flatten().nonzero().squeeze(1);
  const auto order =
      at::argsort(ranked_by(scores, absolute).flatten().index_select(0, places), /*stable=*/true,
                  /*dim=*/0, /*descending=*/true);
  auto in = at::zeros({edges.numel()}, torch::kBool);
  in.index_fill_(0, places.index_select(0, order.narrow(0, 0, n)), true);
  const auto out = with_flags(*this, in.view(edges.sizes()));
  return prune ? out.pruned() : out;
}

Circuit Circuit::greedy(int64_t n, bool absolute, bool prune) const {
  check_n(*this, n);
  struct Candidate {
    double rank;
    int64_t sender, receiver;
    bool operator<(const Candidate& other) const {  // of equal ones that of the lower numbers comes first
      return std::tie(rank, other.receiver, other.sender) < std::tie(other.rank, receiver, sender);
    }
  };
  const auto ranks = ranked_by(scores, absolute);
  const auto rank = ranks.accessor<double, 2>();
  Flags in(at::zeros_like(in_graph));
  std::priority_queue<Candidate> candidates;
  std::vector<bool> is_open(static_cast<size_t>(nodes.n_receivers()), false),
      is_in(static_cast<size_t>(nodes.n_senders()));
  const auto open = [&](int64_t receiver) {
    if (is_open[static_cast<size_t>(receiver)]) return;
    is_open[static_cast<size_t>(receiver)] = true;
    for (int64_t s = 0; s < nodes.n_before(receiver); ++s) candidates.push({rank[s][receiver], s, receiver});
  };
  open(nodes.logits());
  is_in[0] = true;
  for (; n > 0 && !candidates.empty(); --n) {
    const auto best = candidates.top();
    candidates.pop();
    in.at[best.sender][best.receiver] = true;
    if (is_in[static_cast<size_t>(best.sender)]) continue;
    is_in[static_cast<size_t>(best.sender)] = true;
    for (int64_t r = 0; r < nodes.logits(); ++r)
      if (const auto fed = nodes.fed_by(r); best.sender >= fed.first && best.sender < fed.first + fed.n)
        open(r);
  }
  const auto out = with_flags(*this, in.tensor);
  return prune ? out.pruned() : out;
}

Circuit Circuit::pruned() const {
  Flags in(in_graph);
  const auto n_senders = static_cast<size_t>(nodes.n_senders());
  std::vector<bool> reached(n_senders, false), leads(n_senders, false);  // from the input, to the logits
  reached[0] = true;
  for (int64_t r = 0; r < nodes.logits(); ++r) {  // whatever feeds a receiver has been settled before it
    bool is_fed = false;
    for (int64_t s = 0; s < nodes.n_before(r); ++s) is_fed |= in.at[s][r] && reached[static_cast<size_t>(s)];
    const auto fed = nodes.fed_by(r);
    for (int64_t s = fed.first; is_fed && s < fed.first + fed.n; ++s) reached[static_cast<size_t>(s)] = true;
  }
  for (int64_t r = nodes.logits(); r >= 0; --r) {
    const auto fed = nodes.fed_by(r);
    bool is_read = r == nodes.logits();
    for (int64_t s = fed.first; s < fed.first + fed.n; ++s) is_read |= leads[static_cast<size_t>(s)];
    for (int64_t s = 0; s < nodes.n_before(r); ++s) {
      const auto at = static_cast<size_t>(s);
      in.at[s][r] = in.at[s][r] && is_read && reached[at];
      if (in.at[s][r]) leads[at] = true;
    }
  }
  return with_flags(*this, in.tensor);
}

Circuit Circuit::with_scores(const torch::Tensor& other) const {
  check<ShapeError>(other.sizes() == scores.sizes(), "circuit: scores must be ", scores.sizes(), ", got ",
                    other.sizes());
  const auto wide = other.to(torch::kCPU, torch::kFloat64);
  check<std::invalid_argument>(!wide.masked_select(nodes.edges()).isnan().any().item<bool>(),
                               "circuit: scores of edges must be numbers, got NaN");
  return {nodes, at::where(nodes.edges(), wide, at::zeros({}, wide.options())), in_graph};
}

torch::Tensor Circuit::sender_scores() const {
  return scores.sum(1);
}

Circuit Circuit::ungrouped() const {
  if (nodes.n_groups == nodes.n_heads) return *this;
  auto to = nodes;
  to.n_groups = nodes.n_heads;
  auto out = whole(to);
  out.in_graph = at::zeros_like(out.in_graph);
  const int64_t H = nodes.n_heads, in_group = H / nodes.n_groups;
  for (int64_t r = 0; r < nodes.n_receivers(); ++r) {
    const int64_t layer = nodes.layer_of(r), reader = r % nodes.n_readers();
    const int64_t at = reader - H;  // among the groups' keys, then values
    const bool is_group = layer < nodes.n_layers && at >= 0 && at < 2 * nodes.n_groups;
    const int64_t first = layer == nodes.n_layers ? to.logits()
                          : is_group              ? to.first_reader(layer) + H + at * in_group
                          : at < 0                ? to.first_reader(layer) + reader
                                                  : to.mlp_reader(layer);
    const int64_t n = is_group ? in_group : 1;
    for (int64_t i = 0; i < n; ++i) {
      out.scores.select(1, first + i).copy_(scores.select(1, r) / static_cast<double>(n));
      out.in_graph.select(1, first + i).copy_(in_graph.select(1, r));
    }
  }
  return out;
}

void Circuit::check_fits(const models::Config& cfg) const {
  const bool fits = nodes == Nodes::of(cfg) || nodes == Nodes::of(cfg, /*ungrouped=*/true);
  const auto text = [](const Nodes& n) {
    return concat(n.n_layers, " layers, ", n.n_heads, " heads in ", n.n_groups, " groups, d_model ",
                  n.d_model, n.parallel ? ", parallel blocks" : "");
  };
  check<ConfigError>(fits, "circuit: it names nodes of another model: ", text(nodes), "; the model has ",
                     text(Nodes::of(cfg)));
}

std::vector<hooks::Intervention> Circuit::outside(
    const std::map<std::string, torch::Tensor>& activations) const {
  using hooks::Point;
  const auto inside = senders();
  const auto is_in = [&](int64_t sender) { return std::ranges::binary_search(inside, sender); };
  std::vector<hooks::Intervention> out;
  const auto add = [&](Point point, int64_t layer, const std::vector<int64_t>& heads) {
    hooks::Intervention i;
    i.op = activations.empty() ? "zero" : "replace";
    i.point = point;
    i.heads = heads;
    i.values[layer] = hooks::Operands();
    if (!activations.empty()) {
      const auto name = hooks::hook_name({point, layer});
      const auto found = activations.find(name);
      check<std::invalid_argument>(found != activations.end(), "circuit: the activation '", name,
                                   "' is needed for what is outside of the circuit, and was not given");
      auto value = found->second;
      if (!heads.empty() && value.dim() > 1) value = value.index_select(-2, on_device(heads, value.device()));
      i.values[layer] = value;
    }
    out.push_back(std::move(i));
  };
  for (int64_t layer = 0; layer < nodes.n_layers; ++layer) {
    std::vector<int64_t> heads;
    for (int64_t h = 0; h < nodes.n_heads; ++h)
      if (!is_in(nodes.head(layer, h))) heads.push_back(h);
    if (!heads.empty()) add(Point::kZ, layer, heads);
    if (!is_in(nodes.mlp(layer))) add(Point::kMlpOut, layer, {});
  }
  return out;
}

Comparison compare(const Circuit& first, const Circuit& second) {
  check<ConfigError>(first.nodes == second.nodes, "circuit: circuits of different models cannot be compared");
  Comparison out;
  out.n_first = first.n_edges();
  out.n_second = second.n_edges();
  out.n_both = (first.in_graph & second.in_graph).sum().item<int64_t>();
  out.jaccard = share(out.n_both, out.n_first + out.n_second - out.n_both);
  const auto a = first.senders(), b = second.senders();
  std::vector<int64_t> both, either;
  std::ranges::set_intersection(a, b, std::back_inserter(both));
  std::ranges::set_union(a, b, std::back_inserter(either));
  out.node_jaccard =
      share(static_cast<int64_t>(both.size()) - 1, static_cast<int64_t>(either.size()) - 1);  // but input
  const auto edges = first.nodes.edges();
  const auto x = first.scores.masked_select(edges).abs(), y = second.scores.masked_select(edges).abs();
  const auto span = [](const torch::Tensor& t) {
    return std::span<const double>(t.const_data_ptr<double>(), static_cast<size_t>(t.numel()));
  };
  out.spearman = statistics::spearman(span(x), span(y));
  return out;
}

}  // namespace introspect::circuits

#include "introspect/engine/run_trie.h"

#include <algorithm>
#include <numeric>

#include <ATen/core/grad_mode.h>

#include "introspect/core/check.h"

#include "core/on_device.h"
#include "engine/memory.h"

namespace introspect::engine {

namespace {

using Nodes = std::vector<int64_t>;

constexpr int64_t kReadsAtATime = 4096;  // of spans, which may be many times the nodes of a pass

int64_t longest_path(const TokenTrie& trie) {
  return *std::max_element(trie.depths().begin(), trie.depths().end()) + 1;
}

void check_reads(const models::Model& model, const TokenTrie& trie, const TrieReads& reads) {
  check<std::invalid_argument>(!reads.nodes.empty() && !reads.layers.empty(),
                               "run_trie: nodes and layers to read are needed, got ", reads.nodes.size(),
                               " and ", reads.layers.size());
  for (const int64_t node : reads.nodes)
    check<std::out_of_range>(node >= 0 && node < trie.size(), "run_trie: nodes are 0 to ", trie.size() - 1,
                             ", got ", node);
  const auto points = models::hook_points(model.cfg());
  for (const int64_t layer : reads.layers) {
    check<std::out_of_range>(layer >= 0 && layer < model.cfg().n_layers, "run_trie: layers must be 0 to ",
                             model.cfg().n_layers - 1, ", got ", layer);
    points.parse(hooks::hook_name({reads.point, layer}));
  }
  check<std::invalid_argument>(!reads.last_layer_after_norm || reads.point == hooks::Point::kResidPost,
                               "run_trie: the final norm follows hook_resid_post, got ",
                               hooks::point_name(reads.point));
  check<std::invalid_argument>(hooks::position_axis(reads.point) == 1,
                               "run_trie: scores and patterns of a trie's nodes are not read");
  check<ShapeError>(longest_path(trie) <= model.cfg().n_ctx, "run_trie: sequences must fit into the model's ",
                    model.cfg().n_ctx, " positions, got ", longest_path(trie), " tokens");
}

/// How many nodes each row of the result is the mean of; empty where every node is a row of its own.
/// Throws std::invalid_argument unless there is a row for each node and a node for each row.
Nodes nodes_of_rows(const TrieReads& reads) {
  Nodes counts;
  if (reads.rows.empty()) return counts;
  check<std::invalid_argument>(reads.rows.size() == reads.nodes.size(),
                               "run_trie: every node needs a row, got ", reads.nodes.size(), " nodes and ",
                               reads.rows.size(), " rows");
  for (const int64_t row : reads.rows) {
    check<std::invalid_argument>(row >= 0, "run_trie: rows must be 0 or more, got ", row);
    if (row >= static_cast<int64_t>(counts.size())) counts.resize(static_cast<size_t>(row) + 1);
    ++counts[static_cast<size_t>(row)];
  }
  for (size_t row = 0; row < counts.size(); ++row)
    check<std::invalid_argument>(counts[row] > 0, "run_trie: row ", row, " has no node");
  return counts;
}

/// The nodes [first, last) of a trie as one pass, with the path to the first of them in the cache.
class TriePass {
 public:
  TriePass(const TokenTrie& trie, int64_t first, int64_t last, int64_t n_path)
      : trie_(trie), first_(first), last_(last), n_path_(n_path) {}

  torch::Tensor tokens() const {
    return torch::tensor(Nodes(trie_.tokens().begin() + first_, trie_.tokens().begin() + last_), torch::kLong)
        .unsqueeze(0);
  }

  torch::Tensor parents() const {
    Nodes parents;
    for (int64_t node = first_; node < last_; ++node) {
      const int64_t parent = trie_.parents()[static_cast<size_t>(node)];
      parents.push_back(parent < 0 ? -1 : place(parent));
    }
    return torch::tensor(parents, torch::kLong);
  }

  /// Where the keys of the path to `node`, which is after this pass, stand in the cache afterwards.
  Nodes places_of_path_to(int64_t node) const {
    auto path = trie_.path(node);
    path.pop_back();
    for (auto& at : path) at = place(at);
    return path;
  }

 private:
  /// A node before this pass is on the path, at the place of its depth.
  int64_t place(int64_t node) const {
    return node >= first_ ? n_path_ + node - first_ : trie_.depths()[static_cast<size_t>(node)];
  }

  const TokenTrie& trie_;
  int64_t first_, last_, n_path_;
};

}  // namespace

TriePlan plan_trie(const models::Model& model, const TokenTrie& trie, const TrieOptions& options) {
  const TokenBytes bytes(model.cfg(), model.dtype());
  const int64_t cached = model.cfg().n_layers * bytes.keys;  // of one node, in all layers
  const int64_t path_bytes = longest_path(trie) * cached, node_bytes = bytes.in_block + cached;
  const int64_t affordable = (options.memory_budget - path_bytes) / node_bytes;
  check<std::invalid_argument>(affordable >= 1, "run_trie: a pass of one node needs a memory budget of ",
                               path_bytes + node_bytes, " bytes, got ", options.memory_budget);
  TriePlan plan;
  for (const int64_t end : trie.ends()) plan.tokens += trie.depths()[static_cast<size_t>(end)] + 1;
  plan.nodes = trie.size();
  const int64_t most = std::min(affordable, kMaxRowsPerProduct);
  plan.n_passes = (plan.nodes + most - 1) / most;
  plan.nodes_per_pass = (plan.nodes + plan.n_passes - 1) / plan.n_passes;
  return plan;
}

torch::Tensor run_trie(const models::Model& model, const TokenTrie& trie, const TrieReads& reads,
                       const TrieOptions& options) {
  check_reads(model, trie, reads);
  const auto counts = nodes_of_rows(reads);
  const auto plan = plan_trie(model, trie, options);
  const at::NoGradGuard no_grad;

  Nodes order(reads.nodes.size());  // reads by node, so that each pass finds its own together
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return reads.nodes[static_cast<size_t>(a)] < reads.nodes[static_cast<size_t>(b)];
  });

  const int64_t stop = *std::max_element(reads.layers.begin(), reads.layers.end()) + 1;
  const auto wide = model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto n_rows = static_cast<int64_t>(counts.empty() ? reads.nodes.size() : counts.size());
  torch::Tensor out;
  auto cache = model.make_cache(1, stop);
  size_t next_read = 0;
  for (int64_t first = 0; first < trie.size(); first += plan.nodes_per_pass) {
    const int64_t last = std::min(first + plan.nodes_per_pass, trie.size());
    const TriePass pass(trie, first, last, cache.length());

    Nodes rows, columns;  // of the result, and of this pass
    for (; next_read < order.size(); ++next_read) {
      const auto read = static_cast<size_t>(order[next_read]);
      if (reads.nodes[read] >= last) break;
      rows.push_back(counts.empty() ? order[next_read] : reads.rows[read]);
      columns.push_back(reads.nodes[read] - first);
    }
    const auto rows_n = torch::tensor(rows, torch::kLong);
    const auto columns_n = torch::tensor(columns, torch::kLong);
    const auto n_reads = static_cast<int64_t>(rows.size());

    const auto read_at = [&](const torch::Tensor& x_TD, int64_t layer_at, int64_t from, int64_t n) {
      auto read = x_TD.index_select(0, on_device(columns_n.narrow(0, from, n), x_TD.device()));
      if (reads.last_layer_after_norm &&
          reads.layers[static_cast<size_t>(layer_at)] + 1 == model.cfg().n_layers)
        read = model.ln_final().apply(read.to(model.device()));
      return read.to(wide);
    };
    const auto keep = [&](const torch::Tensor& read, int64_t layer_at, int64_t from) {
      if (!out.defined()) {
        auto sizes = read.sizes().vec();
        sizes[0] = n_rows;
        sizes.insert(sizes.begin() + 1, static_cast<int64_t>(reads.layers.size()));
        out = counts.empty() ? at::empty(sizes, read.options()) : at::zeros(sizes, read.options());
      }
      auto of_layer = out.select(1, layer_at);
      const auto rows_here = rows_n.narrow(0, from, read.size(0));
      if (counts.empty())
        of_layer.index_copy_(0, rows_here, read);
      else
        of_layer.index_add_(0, rows_here, read);
    };
    // What is read on a device comes to the host at the pass's end, in one copy.
    std::vector<std::pair<int64_t, torch::Tensor>> waiting;
    const auto take = [&](const torch::Tensor& x_TD, int64_t layer_at) {
      if (!x_TD.is_cpu()) {
        waiting.emplace_back(layer_at, read_at(x_TD, layer_at, 0, n_reads).to(model.device()));
        return;
      }
      for (int64_t from = 0; from < n_reads; from += kReadsAtATime)
        keep(read_at(x_TD, layer_at, from, std::min(kReadsAtATime, n_reads - from)).cpu(), layer_at, from);
    };
    auto hooks = model.make_hooks();
    for (size_t i = 0; i < reads.layers.size(); ++i)
      hooks.observe(hooks::hook_name({reads.point, reads.layers[i]}),
                    [&, i](const torch::Tensor& x, hooks::Site) {
                      report(options.progress, "activations", first, trie.size());
                      take(x.select(0, 0), static_cast<int64_t>(i));
                    });

    models::ForwardOptions forward;
    forward.cache = &cache;
    forward.hooks = &hooks;
    forward.parents = pass.parents();
    forward.stop_at_layer = stop;
    model.forward(pass.tokens(), forward);
    if (!waiting.empty()) {
      std::vector<torch::Tensor> reads_of_layers;
      for (const auto& [layer_at, read] : waiting) reads_of_layers.push_back(read);
      const auto all = at::stack(reads_of_layers).cpu();
      for (size_t i = 0; i < waiting.size(); ++i) keep(all[static_cast<int64_t>(i)], waiting[i].first, 0);
    }
    if (last < trie.size()) cache = cache.select_positions(pass.places_of_path_to(last));
  }
  if (!counts.empty()) {
    auto sizes = std::vector<int64_t>(static_cast<size_t>(out.dim()), 1);
    sizes[0] = n_rows;
    out.div_(torch::tensor(counts, torch::kLong).view(sizes));
  }
  report(options.progress, "activations", trie.size(), trie.size());
  return out;
}

}  // namespace introspect::engine

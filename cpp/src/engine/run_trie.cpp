#include "introspect/engine/run_trie.h"

#include <algorithm>
#include <numeric>

#include <ATen/core/grad_mode.h>

#include "introspect/core/check.h"

namespace introspect::engine {

namespace {

using Nodes = std::vector<int64_t>;

constexpr int64_t kMostNodesPerPass = 2048;  // a product of more rows is no faster

/// Bytes that one node takes in a pass: the widest activations that live at the same time, and its keys and values.
int64_t bytes_per_node(const models::Model& model) {
  const auto& c = model.cfg();
  const int64_t qkv = (c.n_heads + 2 * c.n_key_value_heads) * c.d_head;
  const int64_t elements =
      4 * c.d_model + 3 * qkv + 4 * c.d_mlp + 2 * c.n_layers * c.n_key_value_heads * c.d_head;
  return elements * static_cast<int64_t>(c10::elementSize(model.dtype()));
}

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
  check<std::invalid_argument>(hooks::position_axis(reads.point) == 1,
                               "run_trie: scores and patterns of a trie's nodes are not read");
  check<ShapeError>(longest_path(trie) <= model.cfg().n_ctx, "run_trie: sequences must fit into the model's ",
                    model.cfg().n_ctx, " positions, got ", longest_path(trie), " tokens");
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

  /// Where the keys of the path to `node`, which is behind this pass, stand in the cache afterwards.
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
  const auto& c = model.cfg();
  const int64_t path_bytes = 2 * longest_path(trie) * c.n_layers * c.n_key_value_heads * c.d_head *
                             static_cast<int64_t>(c10::elementSize(model.dtype()));
  const int64_t affordable = (options.memory_budget - path_bytes) / bytes_per_node(model);
  check<std::invalid_argument>(affordable >= 1, "run_trie: a pass of one node needs a memory budget of ",
                               path_bytes + bytes_per_node(model), " bytes, got ", options.memory_budget);
  TriePlan plan;
  for (const int64_t end : trie.ends()) plan.tokens += trie.depths()[static_cast<size_t>(end)] + 1;
  plan.nodes = trie.size();
  plan.n_passes =
      (plan.nodes + std::min(affordable, kMostNodesPerPass) - 1) / std::min(affordable, kMostNodesPerPass);
  plan.nodes_per_pass = (plan.nodes + plan.n_passes - 1) / plan.n_passes;
  return plan;
}

torch::Tensor run_trie(const models::Model& model, const TokenTrie& trie, const TrieReads& reads,
                       const TrieOptions& options) {
  check_reads(model, trie, reads);
  const auto plan = plan_trie(model, trie, options);
  const at::NoGradGuard no_grad;

  Nodes order(reads.nodes.size());  // rows of the result by node, so that each pass finds its own together
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return reads.nodes[static_cast<size_t>(a)] < reads.nodes[static_cast<size_t>(b)];
  });

  const int64_t stop = *std::max_element(reads.layers.begin(), reads.layers.end()) + 1;
  const auto wide = model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  torch::Tensor out;
  auto cache = model.make_cache(1, stop);
  size_t next_read = 0;
  for (int64_t first = 0; first < trie.size(); first += plan.nodes_per_pass) {
    const int64_t last = std::min(first + plan.nodes_per_pass, trie.size());
    const TriePass pass(trie, first, last, cache.length());

    Nodes rows, columns;  // of the result, and of this pass
    for (; next_read < order.size() && reads.nodes[static_cast<size_t>(order[next_read])] < last;
         ++next_read) {
      rows.push_back(order[next_read]);
      columns.push_back(reads.nodes[static_cast<size_t>(order[next_read])] - first);
    }
    const auto rows_n = torch::tensor(rows, torch::kLong);
    const auto columns_n = torch::tensor(columns, torch::kLong).to(model.device());

    auto hooks = model.make_hooks();
    for (size_t i = 0; i < reads.layers.size(); ++i)
      hooks.observe(hooks::hook_name({reads.point, reads.layers[i]}),
                    [&, i](const torch::Tensor& x, hooks::Site) {
                      report(options.progress, "activations", first, trie.size());
                      if (rows.empty()) return;
                      const auto read = x.select(0, 0).index_select(0, columns_n).to(torch::kCPU, wide);
                      if (!out.defined()) {
                        auto sizes = read.sizes().vec();
                        sizes[0] = static_cast<int64_t>(reads.nodes.size());
                        sizes.insert(sizes.begin() + 1, static_cast<int64_t>(reads.layers.size()));
                        out = at::empty(sizes, read.options());
                      }
                      out.select(1, static_cast<int64_t>(i)).index_copy_(0, rows_n, read);
                    });

    models::ForwardOptions forward;
    forward.cache = &cache;
    forward.hooks = &hooks;
    forward.parents = pass.parents();
    forward.stop_at_layer = stop;
    model.forward(pass.tokens(), forward);
    if (last < trie.size()) cache = cache.select_positions(pass.places_of_path_to(last));
  }
  report(options.progress, "activations", trie.size(), trie.size());
  return out;
}

}  // namespace introspect::engine

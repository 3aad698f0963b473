#include "training/example_tree.h"

#include <algorithm>
#include <set>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/hooks/intervention.h"

namespace introspect::training {

namespace {

void check_example(const models::Config& cfg, const LoraExample& example, const std::string& who) {
  const auto n_prompt = static_cast<int64_t>(example.prompt.size());
  const auto n = n_prompt + static_cast<int64_t>(example.target.size());
  check<std::invalid_argument>(!example.target.empty() && n > 1, who, " has no token to learn");
  check<ShapeError>(n <= cfg.n_ctx, who, " must fit into ", cfg.n_ctx, " positions, got ", n);
  for (const auto* ids : {&example.prompt, &example.target})
    for (const int64_t id : *ids)
      check<std::out_of_range>(id >= 0 && id < cfg.d_vocab, who, ": token ids must be 0 to ", cfg.d_vocab - 1,
                               ", got ", id);
  check<std::invalid_argument>(example.added.empty() || (0 <= example.first && example.first < example.last &&
                                                         example.last <= n_prompt),
                               who, ": the span must lie in the prompt of ", n_prompt, " tokens, got [",
                               example.first, ", ", example.last, ")");
  for (const auto& [layer, direction] : example.added) {
    check<std::out_of_range>(layer >= 0 && layer < cfg.n_layers, who, ": blocks are 0 to ", cfg.n_layers - 1,
                             ", got ", layer);
    check<ShapeError>(direction.defined() && direction.dim() == 1 && direction.size(0) == cfg.d_model, who,
                      ": the direction of block ", layer, " must be [", cfg.d_model, "], got ",
                      direction.defined() ? direction.sizes() : at::IntArrayRef{});
    check<std::invalid_argument>(at::isfinite(direction).all().item<bool>(), who, ": the direction of block ",
                                 layer, " is not finite");
  }
}

torch::Tensor as_tensor(const std::vector<int64_t>& values) {
  return torch::tensor(values, torch::kLong);
}

}  // namespace

ExampleTree::ExampleTree(const models::Model& model, const std::vector<LoraExample>& examples,
                         const std::string& who)
    : who_(who), d_vocab_(model.cfg().d_vocab), tree_(symbols(model, examples, who)) {}

std::vector<std::vector<int64_t>> ExampleTree::symbols(const models::Model& model,
                                                       const std::vector<LoraExample>& examples,
                                                       const std::string& who) {
  check<std::invalid_argument>(!examples.empty(), who, ": at least one example is needed, got none");
  const at::NoGradGuard no_grad;
  const auto wide = model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  std::map<std::string, int64_t> numbers;  // of what is added, by its content
  added_.emplace_back();
  Sha256 all;
  std::vector<std::vector<int64_t>> out;
  int64_t number_before = 0;
  for (size_t i = 0; i < examples.size(); ++i) {
    const auto& example = examples[i];
    check_example(model.cfg(), example, concat(who, ": examples[", i, "]"));
    Sha256 content;
    Added added;
    for (const auto& [layer, direction] : example.added) {
      const auto v = direction.detach().to(torch::kCPU, wide).contiguous();
      content.update(concat(" ", layer, ":")).update(v.const_data_ptr(), v.nbytes());
      added[layer] = v;
    }
    int64_t number = 0;
    if (!added.empty()) {
      const auto [found, is_new] = numbers.emplace(content.hex(), static_cast<int64_t>(added_.size()));
      number = found->second;
      if (is_new) added_.push_back(std::move(added));
    }
    if (number == 0 || number != number_before) units_.emplace_back();
    units_.back().push_back(static_cast<int64_t>(i));
    number_before = number;
    // The last token's output is read by nobody.
    auto ids = example.prompt;
    ids.insert(ids.end(), example.target.begin(), example.target.end() - 1);
    const auto n_targets = static_cast<int64_t>(example.target.size()) - (example.prompt.empty() ? 1 : 0);
    labels_.emplace_back(example.target.end() - n_targets, example.target.end());
    n_targets_.push_back(n_targets);
    all.update(concat(" ", ids.size(), ",", n_targets, ",", example.first, ",", example.last, ",",
                      content.hex(), ":"));
    all.update(ids.data(), ids.size() * sizeof(int64_t));
    all.update(labels_.back().data(), labels_.back().size() * sizeof(int64_t));
    if (number > 0)
      for (int64_t t = example.first; t < example.last; ++t) ids[static_cast<size_t>(t)] += number * d_vocab_;
    out.push_back(std::move(ids));
  }
  hash_ = all.hex();
  return out;
}

int64_t ExampleTree::n_tokens() const {
  int64_t n = 0;
  for (const int64_t end : tree_.ends()) n += tree_.depths()[static_cast<size_t>(end)] + 1;
  return n;
}

ExampleTree::Part ExampleTree::part(const std::vector<int64_t>& examples) const {
  std::vector<std::vector<int64_t>> paths;
  std::vector<int64_t> nodes;
  for (const int64_t example : examples) {
    check<std::out_of_range>(example >= 0 && example < n_examples(), who_, ": examples are 0 to ",
                             n_examples() - 1, ", got ", example);
    paths.push_back(tree_.path(tree_.ends()[static_cast<size_t>(example)]));
    nodes.insert(nodes.end(), paths.back().begin(), paths.back().end());
  }
  std::ranges::sort(nodes);
  nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
  const auto place = [&](int64_t node) -> int64_t {
    return node < 0 ? -1 : std::ranges::lower_bound(nodes, node) - nodes.begin();
  };
  std::vector<int64_t> tokens, parents, reads, labels;
  for (const int64_t node : nodes) {
    tokens.push_back(tree_.tokens()[static_cast<size_t>(node)] % d_vocab_);
    parents.push_back(place(tree_.parents()[static_cast<size_t>(node)]));
  }
  for (size_t i = 0; i < examples.size(); ++i) {
    const auto& of_example = labels_[static_cast<size_t>(examples[i])];
    for (auto node = paths[i].end() - static_cast<int64_t>(of_example.size()); node != paths[i].end(); ++node)
      reads.push_back(place(*node));
    labels.insert(labels.end(), of_example.begin(), of_example.end());
  }
  return {as_tensor(nodes), as_tensor(tokens).unsqueeze(0), as_tensor(parents), as_tensor(reads),
          as_tensor(labels)};
}

hooks::HookRegistry ExampleTree::additions(const models::Model& model, const Part& part, int64_t first,
                                           int64_t last) const {
  auto hooks = model.make_hooks();
  const auto nodes = part.nodes.const_data_ptr<int64_t>();
  hooks::Intervention add;
  for (int64_t n = 0; n < part.nodes.numel(); ++n) {
    const auto number = tree_.tokens()[static_cast<size_t>(nodes[n])] / d_vocab_;
    for (const auto& [layer, direction] : added_[static_cast<size_t>(number)]) {
      if (layer < first || layer >= last) continue;
      auto& operands = add.values[layer];
      if (operands.empty())
        operands = at::zeros({1, part.nodes.numel(), model.cfg().d_model}, direction.options());
      operands.v()[0][n].copy_(direction);
    }
  }
  for (auto& [layer, operands] : add.values) operands = operands.v().to(model.dtype());
  if (!add.values.empty()) hooks.add(add);
  return hooks;
}

std::vector<std::vector<int64_t>> ExampleTree::groups(std::vector<int64_t> examples, int64_t most) const {
  std::ranges::stable_sort(examples, {}, [&](int64_t i) { return tree_.ends()[static_cast<size_t>(i)]; });
  std::vector<std::vector<int64_t>> out;
  std::set<int64_t> nodes;
  for (const int64_t example : examples) {
    const auto path = tree_.path(tree_.ends()[static_cast<size_t>(example)]);
    const auto n_new = std::ranges::count_if(path, [&](int64_t node) { return !nodes.contains(node); });
    if (out.empty() || static_cast<int64_t>(nodes.size()) + n_new > most) {
      out.emplace_back();
      nodes.clear();
    }
    out.back().push_back(example);
    nodes.insert(path.begin(), path.end());
  }
  return out;
}

}  // namespace introspect::training

#include "introspect/circuits/attribute.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "circuits/feature_layers.h"
#include "circuits/frozen_model.h"
#include "circuits/graph_search.h"
#include "circuits/graph_targets.h"
#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/models/weights_held.h"
#include "models/numerics.h"

namespace introspect::circuits {

namespace {

void check_options(const AttributeOptions& options) {
  check<std::invalid_argument>(options.logit_mass > 0 && options.logit_mass <= 1,
                               "attribute: logit_mass must be above 0 and at most 1, got ",
                               options.logit_mass);
  const auto positive = [](const char* name, int64_t value, int64_t least = 1) {
    check<std::invalid_argument>(value >= least, "attribute: ", name, " must be at least ", least, ", got ",
                                 value);
  };
  positive("max_logits", options.max_logits);
  positive("max_features", options.max_features, 0);
  positive("edges_per_row", options.edges_per_row, 0);
  positive("rows_per_batch", options.rows_per_batch);
  positive("batches_per_update", options.batches_per_update);
  check<std::invalid_argument>(options.time_budget >= 0,
                               "attribute: time_budget must be seconds, 0 for any time, got ",
                               options.time_budget);
}

/// Tokens on the CPU, of options that were looked at.
torch::Tensor checked(const models::Model& model, const torch::Tensor& tokens_T,
                      const AttributeOptions& options) {
  check_options(options);
  const auto tokens = checked_tokens(model, tokens_T, 2, "attribute");
  for (const auto& injection : options.injections) {
    check<std::out_of_range>(injection.layer >= 0 && injection.layer < model.cfg().n_layers,
                             "attribute: an injection must be after a block 0 to ", model.cfg().n_layers - 1,
                             ", got ", injection.layer);
    check<ShapeError>(injection.vector_D.defined() && injection.vector_D.dim() == 1 &&
                          injection.vector_D.size(0) == model.cfg().d_model,
                      "attribute: an injection must be of a vector [", model.cfg().d_model, "], got ",
                      injection.vector_D.defined() ? concat(injection.vector_D.sizes()) : "none");
    check<std::invalid_argument>(at::isfinite(injection.vector_D).all().item<bool>(),
                                 "attribute: an injection must be finite");
    for (const int64_t position : injection.positions)
      check<std::out_of_range>(position >= 0 && position < tokens.size(0),
                               "attribute: an injection must be at 0 to ", tokens.size(0) - 1, ", got ",
                               position);
  }
  return tokens;
}

/// What two searches share if they make the same rows in the same batches.
std::string key_of(const models::Model& model, const torch::Tensor& tokens, const Transcoders& transcoders,
                   const AttributeOptions& options) {
  Sha256 hash;
  const auto say = [&](const auto&... parts) { hash.update(concat(parts..., ";")); };
  const auto tensor = [&](const torch::Tensor& x) {
    const auto whole = x.to(torch::kCPU, torch::kFloat64).contiguous();
    say(whole.sizes());
    hash.update(whole.const_data_ptr(), static_cast<size_t>(whole.nbytes()));
  };
  say("1", model.hash(), model.dtype());
  if (models::multiplies_unrounded(model)) say("as stored");
  if (const auto kind = models::device_kind(model); kind != "cpu") say("device", kind);
  tensor(tokens);
  for (const auto& [layer, one] : transcoders.layers) say(layer, one.hash());
  if (transcoders.cross_layer) say("cross-layer", transcoders.cross_layer->hash());
  for (const auto& one : transcoders.saes)
    say(one.hash(), one.origin().inputs.empty() ? "" : one.origin().inputs[0].hook_name);
  say(transcoders.input ? static_cast<int>(*transcoders.input) : -1, options.logit_mass, options.max_logits,
      options.max_features, options.edges_per_row, options.mask_first, options.rows_per_batch,
      options.batches_per_update, options.memory_budget);
  for (const auto& target : options.targets) {
    say(target.name, target.layer.value_or(-1), target.position, target.weight);
    tensor(target.direction_D);
  }
  for (const auto& injection : options.injections) {
    say(injection.layer);
    for (const auto position : injection.positions) say(position);
    tensor(injection.vector_D);
  }
  return hash.hex();
}

/// The graph of what was found.
class GraphMaker {
 public:
  GraphMaker(const FrozenModel& frozen, const FeatureLayers& features, GraphSearch& search, bool fold)
      : frozen_(frozen), features_(features), search_(search), fold_(fold) {}

  AttributionGraph make(const torch::Tensor& tokens_T, const Targets& targets) {
    const int64_t T = frozen_.n_tokens(), L = frozen_.n_layers();
    const auto& columns = search_.columns();
    std::vector<size_t> order(columns.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return columns[a] < columns[b]; });
    for (const auto i : order) {
      const auto at = search_.maker().place(columns[i]);
      columns_.push_back(columns[i]);
      const auto& layer = features_.layers[size_t(at.layer_index)];
      graph_.nodes.push_back(
          {GraphNodeKind::feature, layer.layer, at.position, at.feature, at.activation, "", layer.site});
    }
    first_error_ = graph_.n_nodes();
    for (int64_t layer = 0; layer < L; ++layer)
      for (int64_t t = 0; t < T; ++t) graph_.nodes.push_back({GraphNodeKind::error, layer, t, -1, 0, ""});
    for (const auto& split : features_.splits)
      for (int64_t t = 0; t < T; ++t)
        graph_.nodes.push_back({GraphNodeKind::error, split.layer, t, -1, 0, "", split.site});
    const auto& model = frozen_.model();
    for (int64_t t = 0; t < T; ++t) {
      const auto id = tokens_T[t].item<int64_t>();
      graph_.tokens.push_back(id);
      graph_.token_texts.push_back(text_of(model, id));
      graph_.nodes.push_back({GraphNodeKind::token, -1, t, id, 0, graph_.token_texts.back()});
    }
    for (int64_t layer = -1; layer < L; ++layer)
      graph_.nodes.push_back({GraphNodeKind::bias, layer, -1, -1, 0, ""});

    std::vector<int64_t> injected;
    for (int64_t layer = 0; layer < L; ++layer) {
      if (!frozen_.injected_TD(layer).defined()) continue;
      injected.push_back(layer);
      graph_.nodes.push_back({GraphNodeKind::injection, layer, -1, -1, 0, ""});
    }
    injected_ = at::tensor(injected, at::kLong);
    for (size_t i = 0; i < order.size(); ++i)
      add(static_cast<int64_t>(i), std::exchange(search_.rows()[order[i]], {}));
    for (size_t i = 0; i < targets.nodes.size(); ++i) {
      graph_.nodes.push_back(targets.nodes[i]);
      add(graph_.n_nodes() - 1, std::exchange(search_.target_rows()[i], {}));
    }
    graph_.offsets = at::tensor(offsets_, at::kLong);
    graph_.sources = sources_.empty() ? at::empty({0}, at::kLong) : at::cat(sources_);
    graph_.weights = weights_.empty() ? at::empty({0}, frozen_.embedded_TD().options().device(torch::kCPU))
                                      : at::cat(weights_);
    graph_.model_name = model.cfg().model_name;
    graph_.model_hash = model.hash();
    graph_.prompt = model.has_tokenizer() ? model.tokenizer().decode(graph_.tokens) : std::string();
    return std::move(graph_);
  }

 private:
  void add(int64_t node, const KeptRow& row) {
    const auto columns = row.columns.cpu();
    const auto* c = columns.const_data_ptr<int32_t>();
    std::vector<int64_t> kept, nodes, cells;
    for (int64_t i = 0; i < columns.size(0); ++i) {
      const auto at = std::lower_bound(columns_.begin(), columns_.end(), c[i]);
      if (at == columns_.end() || *at != c[i]) continue;
      kept.push_back(i);
      nodes.push_back(at - columns_.begin());
      if (fold_) cells.push_back(search_.maker().cell(c[i]));
    }
    const auto index = at::tensor(kept, at::kLong);
    const auto weights = row.weights.cpu().index_select(0, index);
    auto errors_E = row.errors_E.cpu();
    if (fold_) {  // and what features without a node contribute
      errors_E = errors_E + row.by_cell_E.cpu();
      errors_E.index_add_(0, at::tensor(cells, at::kLong), weights, -1);
    }
    const auto others = at::cat({errors_E, row.tokens_T.cpu(), row.biases_B.cpu(),
                                 row.injections_L.cpu().index_select(0, injected_)});
    const auto some = others.nonzero().squeeze(1);
    sources_.push_back(at::cat({at::tensor(nodes, at::kLong), some + first_error_}));
    weights_.push_back(at::cat({weights, others.index_select(0, some)}));
    offsets_.push_back(offsets_.back() + sources_.back().size(0));
    graph_.targets.push_back(node);
  }

  const FrozenModel& frozen_;
  const FeatureLayers& features_;
  GraphSearch& search_;
  bool fold_;
  AttributionGraph graph_;
  int64_t first_error_ = 0;
  torch::Tensor injected_;        // layers with an injection
  std::vector<int64_t> columns_;  // of the features' nodes, which stand first
  std::vector<int64_t> offsets_{0};
  std::vector<torch::Tensor> sources_, weights_;
};

}  // namespace

AttributionGraph attribute(const models::Model& model, const torch::Tensor& tokens_T,
                           const Transcoders& transcoders, const AttributeOptions& options) {
  const at::NoGradGuard no_grad;
  const auto tokens = checked(model, tokens_T, options);
  const auto key = options.rows_folder.empty() ? std::string() : key_of(model, tokens, transcoders, options);
  const FrozenModel frozen(model, tokens, options.memory_budget / 4, options.injections);
  const auto targets = targets_of(frozen, options);
  const auto features = read_features(frozen, transcoders, options.mask_first);
  GraphSearch search(frozen, features, options, key);
  search.run(targets);
  auto graph = GraphMaker(frozen, features, search, options.fold).make(tokens, targets);
  graph.transcoders = transcoders.name;
  graph.notes = nlohmann::ordered_json{{"active_features", search.maker().n_features()},
                                       {"features_with_rows", search.columns().size()},
                                       {"edges_per_row", options.edges_per_row},
                                       {"folded", options.fold},
                                       {"mask_first", options.mask_first},
                                       {"given_targets", !options.targets.empty()}}
                    .dump();
  return graph;
}

AttributionPlan plan_attribution(const models::Model& model, const torch::Tensor& tokens_T,
                                 const Transcoders& transcoders, const AttributeOptions& given) {
  const at::NoGradGuard no_grad;
  auto options = given;
  options.rows_folder.clear();  // nothing is written
  const auto tokens = checked(model, tokens_T, options);
  const FrozenModel frozen(model, tokens, options.memory_budget / 4, options.injections);
  const auto targets = targets_of(frozen, options);
  const auto features = read_features(frozen, transcoders, options.mask_first);
  return GraphSearch(frozen, features, options, "").plan(targets);
}

}  // namespace introspect::circuits

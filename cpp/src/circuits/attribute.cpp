#include "introspect/circuits/attribute.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <nlohmann/json.hpp>

#include "circuits/attribution_rows.h"
#include "circuits/feature_layers.h"
#include "circuits/frozen_model.h"
#include "core/parallel.h"
#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"

namespace introspect::circuits {

namespace {

/// A row as it is kept: its features of largest weight, and sums over all of them.
struct KeptRow {
  torch::Tensor columns, weights;  // int64 [m] of active features, ascending; [m]
  torch::Tensor by_cell_E;         // all features' contributions by layer and position
  torch::Tensor errors_E, tokens_T, biases_B, injections_L;
  double abs_sum = 0;  // over every feature, error and token
};

/// The largest `most` of |row|, 0 for all, and sums over every entry: of the cells, and of sizes.
///
/// One pass counts values by the upper bits of their size, so that only those at the edge have to be ordered.
template <typename T>
void keep_largest(const T* row, const std::vector<RowMaker::Cell>& cells, int64_t most, T* by_cell,
                  double* abs_sum, std::vector<int64_t>& columns) {
  constexpr int kBits = 12;  // the exponent of a float and 4 bits of its fraction
  std::array<int64_t, 1 << kBits> counts{};
  const auto bucket = [](T x) {
    return std::bit_cast<uint32_t>(static_cast<float>(std::abs(x))) >> (31 - kBits);
  };
  double all = 0;
  for (const auto& cell : cells) {
    double sum = 0, size = 0;
    for (int64_t i = cell.first; i < cell.end; ++i) {
      sum += row[i];
      size += std::abs(row[i]);
      if (row[i] != 0) ++counts[bucket(row[i])];
    }
    by_cell[cell.number] = static_cast<T>(sum);
    all += size;
  }
  *abs_sum = all;
  // The lowest bucket whose values are all kept, and how many of the one below are.
  uint32_t edge = counts.size();
  int64_t room = most > 0 ? most : std::numeric_limits<int64_t>::max();
  while (edge > 0 && counts[edge - 1] <= room) room -= counts[--edge];
  std::vector<int64_t> at_edge;
  for (const auto& cell : cells)
    for (int64_t i = cell.first; i < cell.end; ++i) {
      if (row[i] == 0) continue;
      const auto of = bucket(row[i]);
      if (of >= edge)
        columns.push_back(i);
      else if (of + 1 == edge)
        at_edge.push_back(i);
    }
  if (edge == 0 || room == 0) return;
  const auto larger = [&](int64_t a, int64_t b) {
    const T x = std::abs(row[a]), y = std::abs(row[b]);
    return x != y ? x > y : a < b;
  };
  std::nth_element(at_edge.begin(), at_edge.begin() + room, at_edge.end(), larger);
  columns.insert(columns.end(), at_edge.begin(), at_edge.begin() + room);
  std::sort(columns.begin(), columns.end());
}

struct Targets {
  std::vector<RowTarget> rows;
  std::vector<GraphNode> nodes;
};

/// A token as text, with the space that it begins a word with (which SentencePiece takes from a text's beginning).
std::string text_of(const models::Model& model, int64_t id) {
  if (!model.has_tokenizer()) return std::to_string(id);
  const auto text = model.tokenizer().decode({id});
  const bool begins_word = model.tokenizer().id_to_token(id).rfind("\u2581", 0) == 0;
  return begins_word && text.rfind(' ', 0) != 0 ? " " + text : text;
}

Targets chosen_logits(const FrozenModel& frozen, const AttributeOptions& options) {
  const auto& model = frozen.model();
  const int64_t T = frozen.n_tokens(), L = frozen.n_layers();
  const auto last_D = frozen.last_TD()[T - 1];
  const auto p_V = model.readout(last_D.to(model.dtype())).to(torch::kFloat64).softmax(-1).cpu();
  const auto [sorted, order] = p_V.sort(/*stable=*/true, -1, /*descending=*/true);
  const auto mass = sorted.cumsum(0);
  int64_t n = 1;
  while (n < options.max_logits && n < p_V.size(0) && mass[n - 1].item<double>() < options.logit_mass) ++n;

  const auto directions_nD = logit_directions(model, order.narrow(0, 0, n));
  const auto position = at::tensor({T - 1}, at::kLong);
  const auto bias_D = frozen.final_bias_D();
  Targets out;
  for (int64_t i = 0; i < n; ++i) {
    const auto id = order[i].item<int64_t>();
    const auto u_D = directions_nD[i];
    RowTarget row{RowTarget::Reads::stream_after, L - 1, T - 1,
                  frozen.final_gradient(u_D.unsqueeze(0), position)[0], 0};
    if (bias_D.defined()) row.constant = at::dot(u_D, bias_D).item<double>();
    out.rows.push_back(row);
    out.nodes.push_back({GraphNodeKind::logit, L, T - 1, id, sorted[i].item<double>(), text_of(model, id)});
  }
  return out;
}

Targets given_targets(const FrozenModel& frozen, const std::vector<GraphTarget>& given) {
  const int64_t T = frozen.n_tokens(), L = frozen.n_layers(), D = frozen.embedded_TD().size(1);
  Targets out;
  for (const auto& target : given) {
    const auto who = concat("attribute: target '", target.name, "'");
    check<ShapeError>(
        target.direction_D.defined() && target.direction_D.dim() == 1 && target.direction_D.size(0) == D, who,
        " must have a direction [", D, "]");
    check<std::invalid_argument>(at::isfinite(target.direction_D).all().item<bool>() && target.weight > 0 &&
                                     std::isfinite(target.weight),
                                 who, " must have a finite direction and a weight above 0");
    const int64_t position = target.position < 0 ? T + target.position : target.position;
    check<std::out_of_range>(position >= 0 && position < T, who, " must be at a position of the ", T,
                             " tokens, got ", target.position);
    const int64_t layer = target.layer.value_or(L - 1);
    check<std::out_of_range>(layer >= 0 && layer < L, who, " must be after a block 0 to ", L - 1, ", got ",
                             layer);
    auto direction_D = target.direction_D.to(frozen.embedded_TD().options());
    double constant = 0;
    if (!target.layer) {
      const auto bias_D = frozen.final_bias_D();
      if (bias_D.defined()) constant = at::dot(direction_D, bias_D).item<double>();
      direction_D = frozen.final_gradient(direction_D.unsqueeze(0), at::tensor({position}, at::kLong))[0];
    }
    out.rows.push_back({RowTarget::Reads::stream_after, layer, position, direction_D, constant});
    out.nodes.push_back({GraphNodeKind::logit, L, position, static_cast<int64_t>(out.nodes.size()),
                         target.weight, target.name});
  }
  return out;
}

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
}

/// Deeper targets first, as RowMaker wants them.
std::vector<size_t> by_depth(const std::vector<RowTarget>& targets) {
  std::vector<size_t> order(targets.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto depth = [&](size_t i) {
    return 2 * targets[i].layer + (targets[i].reads == RowTarget::Reads::stream_after ? 1 : 0);
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return depth(a) > depth(b); });
  return order;
}

/// The search: rows of targets, then of the features that matter most so far.
class Search {
 public:
  Search(const FrozenModel& frozen, const FeatureLayers& features, const AttributeOptions& options)
      : frozen_(frozen), features_(features), maker_(frozen, features), options_(options) {
    const int64_t row = maker_.row_bytes(frozen.n_tokens());
    check<std::invalid_argument>(row <= options.memory_budget, "attribute: a row of ", frozen.n_tokens(),
                                 " tokens and ", maker_.n_features(), " active features takes ", row >> 20,
                                 " MiB, and the memory budget is ", options.memory_budget >> 20, " MiB");
    // A quarter is for patterns, and one for decoder rows.
    batch_ = std::clamp<int64_t>(options.memory_budget / 2 / row, 1, options.rows_per_batch);
    maker_.gather(options.memory_budget / 4);
  }

  void run(const Targets& targets) {
    std::vector<double> weights;
    for (const auto& node : targets.nodes) weights.push_back(node.value);
    target_weights_ = weights;
    target_rows_ = make(targets.rows);

    const int64_t wanted = std::min(options_.max_features, maker_.n_features());
    std::vector<bool> done(static_cast<size_t>(maker_.n_features()), false);
    report(0, wanted);
    while (static_cast<int64_t>(columns_.size()) < wanted) {
      auto next = next_columns(done, std::min<int64_t>(wanted - static_cast<int64_t>(columns_.size()),
                                                       batch_ * options_.batches_per_update));
      if (next.empty()) break;
      // Those of early positions together: their rows are shorter.
      std::sort(next.begin(), next.end(), [&](int64_t a, int64_t b) {
        const int64_t p = maker_.position(a), q = maker_.position(b);
        return p != q ? p < q : a < b;
      });
      for (size_t first = 0; first < next.size(); first += static_cast<size_t>(batch_)) {
        const auto n = std::min(next.size() - first, static_cast<size_t>(batch_));
        const std::vector<int64_t> some(next.begin() + static_cast<ptrdiff_t>(first),
                                        next.begin() + static_cast<ptrdiff_t>(first + n));
        std::vector<RowTarget> rows;
        for (const auto column : some) rows.push_back(target_of(column));
        auto kept = make(rows);
        for (size_t i = 0; i < n; ++i) {
          columns_.push_back(some[i]);
          rows_.push_back(std::move(kept[i]));
          done[static_cast<size_t>(some[i])] = true;
        }
        report(static_cast<int64_t>(columns_.size()), wanted);
      }
    }
  }

  const RowMaker& maker() const { return maker_; }
  const std::vector<int64_t>& columns() const { return columns_; }
  const std::vector<KeptRow>& rows() const { return rows_; }
  const std::vector<KeptRow>& target_rows() const { return target_rows_; }

 private:
  void report(int64_t done, int64_t total) const {
    check_interrupt();
    if (options_.progress) options_.progress("attribution rows", done, total);
  }

  RowTarget target_of(int64_t column) const {
    const auto at = maker_.place(column);
    const auto& layer = features_.layers[static_cast<size_t>(at.layer_index)];
    return {RowTarget::Reads::mlp_input, layer.layer, at.position, layer.W_enc_FD[at.feature],
            layer.constant_F[at.feature].item<double>()};
  }

  std::vector<KeptRow> make(const std::vector<RowTarget>& targets) {
    std::vector<KeptRow> out(targets.size());
    const auto order = by_depth(targets);
    for (size_t first = 0; first < order.size(); first += static_cast<size_t>(batch_)) {
      const auto n = std::min(order.size() - first, static_cast<size_t>(batch_));
      std::vector<RowTarget> some;
      for (size_t i = 0; i < n; ++i) some.push_back(targets[order[first + i]]);
      const auto rows = maker_.rows(some);
      const auto abs_R = rows.errors_RE.abs().sum(1, false, torch::kFloat64) +
                         rows.tokens_RT.abs().sum(1, false, torch::kFloat64) +
                         rows.injections_RL.abs().sum(1, false, torch::kFloat64);
      for (size_t i = 0; i < n; ++i) {
        const auto r = static_cast<int64_t>(i);
        auto& row = out[order[first + i]];
        row.errors_E = rows.errors_RE[r].clone();
        row.tokens_T = rows.tokens_RT[r].clone();
        row.biases_B = rows.biases_RB[r].clone();
        row.injections_L = rows.injections_RL[r].clone();
        row.abs_sum = abs_R[r].item<double>();
      }
      keep_features(rows.features_RN.cpu(), some,
                    [&](size_t i) -> KeptRow& { return out[order[first + i]]; });
    }
    return out;
  }

  /// The features of each row that it keeps, and its sums over all.
  template <typename RowOf>
  void keep_features(const torch::Tensor& features_RN, const std::vector<RowTarget>& targets,
                     const RowOf& row_of) const {
    const int64_t cells = frozen_.n_layers() * frozen_.n_tokens();
    parallel_for(0, static_cast<int64_t>(targets.size()), 1, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) {
        KeptRow& row = row_of(static_cast<size_t>(r));
        const auto seen = maker_.seen(targets[static_cast<size_t>(r)]);
        row.by_cell_E = at::zeros({cells}, features_RN.options());
        std::vector<int64_t> columns;
        double abs_sum = 0;
        AT_DISPATCH_FLOATING_TYPES(features_RN.scalar_type(), "keep_features", [&] {
          keep_largest(features_RN.const_data_ptr<scalar_t>() + r * features_RN.stride(0), seen,
                       options_.edges_per_row, row.by_cell_E.mutable_data_ptr<scalar_t>(), &abs_sum, columns);
        });
        row.abs_sum += abs_sum;
        row.columns = at::tensor(columns, at::kLong);
        row.weights = features_RN[r].index_select(0, row.columns);
      }
    });
  }

  /// Features without a row yet, those through which most of the targets runs as far as rows are known.
  std::vector<int64_t> next_columns(const std::vector<bool>& done, int64_t n) const {
    std::vector<double> v(static_cast<size_t>(maker_.n_features()), 0.0);
    const auto pass_on = [&](const KeptRow& row, double weight) {
      if (weight == 0 || row.abs_sum == 0) return;
      const auto columns = row.columns.cpu();
      const auto weights = row.weights.to(torch::kCPU, torch::kFloat64);
      const auto* c = columns.const_data_ptr<int64_t>();
      const auto* w = weights.const_data_ptr<double>();
      for (int64_t i = 0; i < columns.size(0); ++i)
        v[static_cast<size_t>(c[i])] += weight * std::abs(w[i]) / row.abs_sum;
    };
    for (size_t i = 0; i < target_rows_.size(); ++i) pass_on(target_rows_[i], target_weights_[i]);
    // Columns stand by layer, so that what lies above a feature has passed all it has before its turn.
    std::vector<size_t> order(columns_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return columns_[a] > columns_[b]; });
    for (const auto i : order) pass_on(rows_[i], v[static_cast<size_t>(columns_[i])]);

    std::vector<int64_t> open;
    for (int64_t i = 0; i < maker_.n_features(); ++i)
      if (!done[static_cast<size_t>(i)] && v[static_cast<size_t>(i)] > 0) open.push_back(i);
    const auto more = [&](int64_t a, int64_t b) {
      const double x = v[static_cast<size_t>(a)], y = v[static_cast<size_t>(b)];
      return x != y ? x > y : a < b;
    };
    n = std::min(n, static_cast<int64_t>(open.size()));
    std::partial_sort(open.begin(), open.begin() + n, open.end(), more);
    open.resize(static_cast<size_t>(n));
    return open;
  }

  const FrozenModel& frozen_;
  const FeatureLayers& features_;
  RowMaker maker_;
  const AttributeOptions& options_;
  int64_t batch_ = 1;
  std::vector<double> target_weights_;
  std::vector<KeptRow> target_rows_, rows_;
  std::vector<int64_t> columns_;  // of rows_
};

/// The graph of what was found.
class GraphMaker {
 public:
  GraphMaker(const FrozenModel& frozen, const FeatureLayers& features, const Search& search, bool fold)
      : frozen_(frozen), features_(features), search_(search), fold_(fold) {}

  AttributionGraph make(const torch::Tensor& tokens_T, const Targets& targets) {
    const int64_t T = frozen_.n_tokens(), L = frozen_.n_layers();
    auto columns = search_.columns();
    std::vector<size_t> order(columns.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return columns[a] < columns[b]; });
    node_of_column_.assign(static_cast<size_t>(search_.maker().n_features()), -1);
    for (const auto i : order) {
      const auto at = search_.maker().place(columns[i]);
      node_of_column_[static_cast<size_t>(columns[i])] = graph_.n_nodes();
      graph_.nodes.push_back({GraphNodeKind::feature, features_.layers[size_t(at.layer_index)].layer,
                              at.position, at.feature, at.activation, ""});
    }
    first_error_ = graph_.n_nodes();
    for (int64_t layer = 0; layer < L; ++layer)
      for (int64_t t = 0; t < T; ++t) graph_.nodes.push_back({GraphNodeKind::error, layer, t, -1, 0, ""});
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
    for (const auto i : order) add(node_of_column_[static_cast<size_t>(columns[i])], search_.rows()[i]);
    for (size_t i = 0; i < targets.nodes.size(); ++i) {
      graph_.nodes.push_back(targets.nodes[i]);
      add(graph_.n_nodes() - 1, search_.target_rows()[i]);
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
    const auto* c = columns.const_data_ptr<int64_t>();
    std::vector<int64_t> kept, nodes;
    for (int64_t i = 0; i < columns.size(0); ++i) {
      const auto at = node_of_column_[static_cast<size_t>(c[i])];
      if (at < 0) continue;
      kept.push_back(i);
      nodes.push_back(at);
    }
    const auto index = at::tensor(kept, at::kLong);
    const auto weights = row.weights.cpu().index_select(0, index);
    auto errors_E = row.errors_E.cpu();
    if (fold_) {  // and what features without a node contribute
      const auto cells = search_.maker().cells().index_select(0, columns.index_select(0, index));
      errors_E = errors_E + row.by_cell_E.cpu();
      errors_E.index_add_(0, cells, weights, -1);
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
  const Search& search_;
  bool fold_;
  AttributionGraph graph_;
  int64_t first_error_ = 0;
  torch::Tensor injected_;  // layers with an injection
  std::vector<int64_t> node_of_column_, offsets_{0};
  std::vector<torch::Tensor> sources_, weights_;
};

}  // namespace

AttributionGraph attribute(const models::Model& model, const torch::Tensor& tokens_T,
                           const Transcoders& transcoders, const AttributeOptions& options) {
  const at::NoGradGuard no_grad;
  check_options(options);
  const auto tokens = checked_tokens(model, tokens_T, 2, "attribute");
  for (const auto& injection : options.injections) {
    check<std::out_of_range>(injection.layer >= 0 && injection.layer < model.cfg().n_layers,
                             "attribute: an injection must be after a block 0 to ", model.cfg().n_layers - 1,
                             ", got ", injection.layer);
    check<ShapeError>(injection.vector_D.defined() && injection.vector_D.dim() == 1 &&
                          injection.vector_D.size(0) == model.cfg().d_model,
                      "attribute: an injection must be of a vector [", model.cfg().d_model, "]");
    check<std::invalid_argument>(at::isfinite(injection.vector_D).all().item<bool>(),
                                 "attribute: an injection must be finite");
    for (const int64_t position : injection.positions)
      check<std::out_of_range>(position >= 0 && position < tokens.size(0),
                               "attribute: an injection must be at 0 to ", tokens.size(0) - 1, ", got ",
                               position);
  }
  const FrozenModel frozen(model, tokens, options.memory_budget / 4, options.injections);
  const auto targets =
      options.targets.empty() ? chosen_logits(frozen, options) : given_targets(frozen, options.targets);
  const auto features = read_features(frozen, transcoders, options.mask_first);
  Search search(frozen, features, options);
  search.run(targets);
  auto graph = GraphMaker(frozen, features, search, options.fold).make(tokens, targets);
  graph.transcoders = transcoders.name;
  graph.notes = nlohmann::ordered_json{{"active_features", search.maker().n_features()},
                                       {"features_with_rows", search.columns().size()},
                                       {"edges_per_row", options.edges_per_row},
                                       {"folded", options.fold},
                                       {"mask_first", options.mask_first}}
                    .dump();
  return graph;
}

}  // namespace introspect::circuits

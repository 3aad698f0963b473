#include "circuits/graph_search.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "core/parallel.h"
#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"

namespace introspect::circuits {

namespace {

constexpr size_t kTimedRows = 64;

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

/// Deeper targets first, as RowMaker wants them.
std::vector<size_t> by_depth(const std::vector<RowTarget>& targets) {
  std::vector<size_t> order(targets.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return targets[a].depth() > targets[b].depth(); });
  return order;
}

}  // namespace

GraphSearch::GraphSearch(const FrozenModel& frozen, const FeatureLayers& features,
                         const AttributeOptions& options, std::string key)
    : frozen_(frozen),
      features_(features),
      maker_(frozen, features),
      options_(options),
      log_(options.rows_folder, std::move(key)) {
  const int64_t row = maker_.row_bytes(frozen.n_tokens());
  check<std::invalid_argument>(row <= options.memory_budget, "attribute: a row of ", frozen.n_tokens(),
                               " tokens and ", maker_.n_features(), " active features takes ",
                               (row >> 20) + 1, " MiB, and the memory budget is ",
                               options.memory_budget >> 20, " MiB");
  check<std::invalid_argument>(
      maker_.n_features() <= std::numeric_limits<int32_t>::max(), "attribute: ", maker_.n_features(),
      " features are active, and a graph is of at most ", std::numeric_limits<int32_t>::max());
  // Half is for patterns and what a pass over a layer takes.
  batch_ = std::clamp<int64_t>(options.memory_budget / 2 / row, 1, options.rows_per_batch);
  done_.assign(static_cast<size_t>(maker_.n_features()), false);
}

void GraphSearch::begin(const Targets& targets) {
  for (const auto& node : targets.nodes) target_weights_.push_back(node.value);
  std::vector<int64_t> numbers;
  for (size_t i = 0; i < targets.rows.size(); ++i) numbers.push_back(-1 - static_cast<int64_t>(i));
  target_rows_ = logged(numbers, targets.rows);
}

void GraphSearch::run(const Targets& targets) {
  if (options_.time_budget > 0) {
    const auto found = plan(targets);
    check<std::invalid_argument>(found.seconds <= options_.time_budget, "attribute: ", found.rows,
                                 " rows over ", found.active_features, " active features would take about ",
                                 std::ceil(found.seconds), " s and ", found.bytes >> 20,
                                 " MiB, and the time budget is ", options_.time_budget,
                                 " s; fewer rows (max_features) or a shorter prompt take less");
  } else {
    begin(targets);
  }
  report();
  while (static_cast<int64_t>(columns_.size()) < wanted()) {
    auto next = next_columns(std::min<int64_t>(wanted() - static_cast<int64_t>(columns_.size()),
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
      auto kept = logged(some, rows);
      for (size_t i = 0; i < n; ++i) {
        columns_.push_back(some[i]);
        rows_.push_back(std::move(kept[i]));
        done_[static_cast<size_t>(some[i])] = true;
      }
      report();
    }
  }
}

AttributionPlan GraphSearch::plan(const Targets& targets) {
  begin(targets);
  AttributionPlan out;
  out.active_features = maker_.n_features();
  out.rows = wanted();
  out.rows_per_batch = batch_;
  const int64_t size = static_cast<int64_t>(frozen_.embedded_TD().element_size());
  const int64_t edges = options_.edges_per_row > 0 ? std::min(options_.edges_per_row, out.active_features)
                                                   : out.active_features;
  const int64_t beside =
      2 * features_.n_error_rows() * frozen_.n_tokens() + frozen_.n_tokens() + 2 * frozen_.n_layers() + 1;
  // The batch under way, what every row keeps, and patterns.
  out.bytes = std::min(out.rows, batch_) * maker_.row_bytes(frozen_.n_tokens()) +
              out.rows * (edges * (size + 4) + beside * size) + frozen_.pattern_bytes();
  const auto some = next_columns(std::min<int64_t>(out.rows, std::min<int64_t>(batch_, int64_t{kTimedRows})));
  if (some.empty()) return out;
  std::vector<RowTarget> rows;
  double of_some = 0;
  for (const auto column : some) {
    rows.push_back(target_of(column));
    of_some += cost(rows.back());
  }
  const auto start = std::chrono::steady_clock::now();
  make(rows);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  out.seconds = taken.count() * cost_of_all() / std::max(of_some, 1.0);
  return out;
}

double GraphSearch::cost(const RowTarget& target) const {
  const auto& cfg = frozen_.model().cfg();
  const auto D = static_cast<double>(cfg.d_model);
  const auto seen = static_cast<double>(target.position + 1), below = static_cast<double>(target.layer);
  const double cells = static_cast<double>(frozen_.n_layers() * frozen_.n_tokens());
  const double active = static_cast<double>(maker_.n_features()) / cells;
  const double heads = static_cast<double>(cfg.n_heads * cfg.d_head);
  const double values = static_cast<double>(cfg.n_key_value_heads * cfg.d_head);
  return 1 + below * seen * (2 * D * (heads + values) + 2 * D * active + heads * seen);
}

double GraphSearch::cost_of_all() const {
  // Of some hundred columns at even distances.
  const int64_t n = maker_.n_features(), step = std::max<int64_t>(1, n / 500);
  double sum = 0;
  int64_t looked_at = 0;
  for (int64_t column = 0; column < n; column += step, ++looked_at) sum += cost(target_of(column));
  return looked_at ? sum / static_cast<double>(looked_at) * static_cast<double>(wanted()) : 0.0;
}

void GraphSearch::report() const {
  check_interrupt();
  if (options_.progress)
    options_.progress("attribution rows", static_cast<int64_t>(columns_.size()), wanted());
}

RowTarget GraphSearch::target_of(int64_t column) const {
  const auto at = maker_.place(column);
  const auto& layer = features_.layers[static_cast<size_t>(at.layer_index)];
  return {reads_of(layer.site), layer.layer, at.position, layer.W_enc_FD[at.feature],
          layer.constant_F[at.feature].item<double>()};
}

std::vector<KeptRow> GraphSearch::logged(const std::vector<int64_t>& columns,
                                         const std::vector<RowTarget>& targets) {
  const int64_t number = batch_number_++;
  if (auto found = log_.read(number, columns)) return std::move(*found);
  auto out = make(targets);
  log_.write(number, columns, out);
  return out;
}

std::vector<KeptRow> GraphSearch::make(const std::vector<RowTarget>& targets) {
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
    keep_features(rows.features_RN.cpu(), some, [&](size_t i) -> KeptRow& { return out[order[first + i]]; });
  }
  return out;
}

template <typename RowOf>
void GraphSearch::keep_features(const torch::Tensor& features_RN, const std::vector<RowTarget>& targets,
                                const RowOf& row_of) const {
  const int64_t cells = features_.n_error_rows() * frozen_.n_tokens();
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
      row.columns = at::tensor(columns, at::kInt);
      row.weights = features_RN[r].index_select(0, row.columns);
    }
  });
}

std::vector<int64_t> GraphSearch::next_columns(int64_t n) const {
  std::vector<double> v(static_cast<size_t>(maker_.n_features()), 0.0);
  const auto pass_on = [&](const KeptRow& row, double weight) {
    if (weight == 0 || row.abs_sum == 0) return;
    const auto columns = row.columns.cpu();
    const auto weights = row.weights.to(torch::kCPU, torch::kFloat64);
    const auto* c = columns.const_data_ptr<int32_t>();
    const auto* w = weights.const_data_ptr<double>();
    for (int64_t i = 0; i < columns.size(0); ++i)
      v[static_cast<size_t>(c[i])] += weight * std::abs(w[i]) / row.abs_sum;
  };
  for (size_t i = 0; i < target_rows_.size(); ++i) pass_on(target_rows_[i], target_weights_[i]);
  // Columns stand by depth, so that what lies above a feature has passed all it has before its turn.
  std::vector<size_t> order(columns_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return columns_[a] > columns_[b]; });
  for (const auto i : order) pass_on(rows_[i], v[static_cast<size_t>(columns_[i])]);

  const auto more = [&](int64_t a, int64_t b) {
    const double x = v[static_cast<size_t>(a)], y = v[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::vector<int64_t> best;  // a heap, the least of them first
  for (int64_t i = 0; i < maker_.n_features(); ++i) {
    if (done_[static_cast<size_t>(i)] || v[static_cast<size_t>(i)] <= 0) continue;
    if (static_cast<int64_t>(best.size()) == n) {
      if (n == 0 || !more(i, best.front())) continue;
      std::pop_heap(best.begin(), best.end(), more);
      best.pop_back();
    }
    best.push_back(i);
    std::push_heap(best.begin(), best.end(), more);
  }
  std::sort_heap(best.begin(), best.end(), more);
  return best;
}

}  // namespace introspect::circuits

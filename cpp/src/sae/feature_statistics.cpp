#include "introspect/sae/feature_statistics.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "core/parallel.h"

namespace introspect::sae {
namespace {

/// The entries of one feature.
struct Entries {
  const int64_t* places;
  torch::Tensor values;  // float64
  int64_t n;
};

Entries entries_of(const FeatureActivations& a, int64_t feature) {
  const int64_t i = a.index(feature);
  const int64_t first = a.offsets[i].item<int64_t>(), last = a.offsets[i + 1].item<int64_t>();
  return {a.places.const_data_ptr<int64_t>() + first,
          a.values.narrow(0, first, last - first).to(torch::kFloat64).contiguous(), last - first};
}

ContextGroup group_of(const FeatureActivations& a, int64_t feature, const std::vector<int64_t>& places) {
  ContextGroup out;
  const auto at = torch::tensor(places, torch::kInt64);
  out.rows_n = at.div(a.width(), "floor");
  out.positions_n = at.remainder(a.width());
  out.values_nT = feature_values(a, feature, out.rows_n);
  return out;
}

}  // namespace

FeatureTable feature_table(const FeatureActivations& a) {
  const int64_t n = a.n_features(), T = a.width();
  FeatureTable out;
  out.count = a.offsets.slice(0, 1) - a.offsets.slice(0, 0, -1);
  out.contexts = at::zeros({n}, torch::kInt64);
  out.mean_active = at::zeros({n}, torch::kFloat64);
  out.max_active = at::zeros({n}, torch::kFloat64);
  const auto values = a.values.to(torch::kFloat64).contiguous();
  const auto* offset = a.offsets.const_data_ptr<int64_t>();
  const auto* place = a.places.const_data_ptr<int64_t>();
  const auto* value = values.const_data_ptr<double>();
  auto* contexts = out.contexts.mutable_data_ptr<int64_t>();
  auto* mean = out.mean_active.mutable_data_ptr<double>();
  auto* highest = out.max_active.mutable_data_ptr<double>();
  parallel_for(0, n, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = offset[i], end = offset[i + 1];
      if (begin == end) continue;
      double sum = 0, most = value[begin];
      int64_t row = -1;
      for (int64_t e = begin; e < end; ++e) {
        sum += value[e];
        most = std::max(most, value[e]);
        contexts[i] += place[e] / T != row;
        row = place[e] / T;
      }
      mean[i] = sum / static_cast<double>(end - begin);
      highest[i] = most;
    }
  });
  out.density = out.count.to(torch::kFloat64) / static_cast<double>(a.read_tokens);
  return out;
}

torch::Tensor feature_values(const FeatureActivations& a, int64_t feature, const torch::Tensor& rows_n) {
  const auto e = entries_of(a, feature);
  const auto rows = rows_n.to(torch::kCPU, torch::kInt64).contiguous();
  const int64_t N = a.contexts.tokens_NT.size(0), T = a.width();
  auto out = at::zeros({rows.numel(), T}, torch::kFloat64);
  auto* to = out.mutable_data_ptr<double>();
  const auto* value = e.values.const_data_ptr<double>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    const int64_t row = rows.const_data_ptr<int64_t>()[i];
    check<std::out_of_range>(row >= 0 && row < N, "feature_values: contexts must be 0 to ", N - 1, ", got ",
                             row);
    const auto* first = std::lower_bound(e.places, e.places + e.n, row * T);
    for (; first != e.places + e.n && *first < (row + 1) * T; ++first)
      to[i * T + *first - row * T] = value[first - e.places];
  }
  return out.to(a.values.scalar_type());
}

std::vector<ContextGroup> context_groups(const FeatureActivations& a, int64_t feature,
                                         const ContextGroupOptions& options) {
  check<std::invalid_argument>(options.top >= 0 && options.quantiles >= 0 && options.per_quantile >= 0,
                               "context_groups: numbers of contexts must not be negative");
  const auto e = entries_of(a, feature);
  const auto* value = e.values.const_data_ptr<double>();
  if (e.n == 0) return {};
  const int64_t T = a.width();

  // The highest token of each context, the first of equal ones; then the highest of these.
  std::vector<int64_t> best;
  for (int64_t i = 0; i < e.n; ++i) {
    if (best.empty() || e.places[best.back()] / T != e.places[i] / T)
      best.push_back(i);
    else if (value[i] > value[best.back()])
      best.back() = i;
  }
  std::stable_sort(best.begin(), best.end(), [&](int64_t l, int64_t r) { return value[l] > value[r]; });
  const double highest = value[best.front()];
  best.resize(std::min<size_t>(best.size(), static_cast<size_t>(options.top)));
  std::vector<int64_t> places;
  for (const int64_t i : best) places.push_back(e.places[i]);
  std::vector<ContextGroup> out{group_of(a, feature, places)};
  out.front().high = highest;
  if (highest <= 0) return out;

  std::mt19937_64 random(options.seed * 0x9e3779b97f4a7c15ULL + static_cast<uint64_t>(feature));
  const auto edge = [&](int64_t i) {
    return highest * static_cast<double>(i) / static_cast<double>(options.quantiles);
  };
  for (int64_t q = options.quantiles - 1; q >= 0; --q) {
    const double low = edge(q), high = q + 1 == options.quantiles ? highest : edge(q + 1);
    std::vector<int64_t> inside;
    int64_t count = q == 0 ? a.read_tokens - e.n : 0;
    for (int64_t i = 0; i < e.n; ++i) {
      if (value[i] < low || value[i] > high) continue;
      ++count;
      if (value[i] > 0) inside.push_back(i);
    }
    places.clear();
    std::set<int64_t> rows;
    for (size_t left = inside.size(); left > 0 && places.size() < static_cast<size_t>(options.per_quantile);
         --left) {
      std::swap(inside[random() % left], inside[left - 1]);
      const int64_t place = e.places[inside[left - 1]];
      if (rows.insert(place / T).second) places.push_back(place);
    }
    auto group = group_of(a, feature, places);
    group.low = low;
    group.high = high;
    group.share = static_cast<double>(count) / static_cast<double>(a.read_tokens);
    out.push_back(std::move(group));
  }
  return out;
}

Neighbours coactive_features(const FeatureActivations& a, int64_t feature, int64_t k) {
  const auto e = entries_of(a, feature);
  const int64_t n = a.n_features(), own = a.index(feature);
  const auto N = static_cast<double>(a.read_tokens);
  std::vector<double> at_place(static_cast<size_t>(a.contexts.tokens_NT.numel()), 0);
  for (int64_t i = 0; i < e.n; ++i)
    at_place[static_cast<size_t>(e.places[i])] = e.values.const_data_ptr<double>()[i];
  const double own_sum = e.values.sum().item<double>(), own_squares = e.values.pow(2).sum().item<double>();

  const auto values = a.values.to(torch::kFloat64).contiguous();
  auto pearson = at::zeros({n}, torch::kFloat64), cosine = at::zeros({n}, torch::kFloat64),
       shared = at::zeros({n}, torch::kInt64);
  const auto* offset = a.offsets.const_data_ptr<int64_t>();
  const auto* place = a.places.const_data_ptr<int64_t>();
  const auto* value = values.const_data_ptr<double>();
  auto* to_pearson = pearson.mutable_data_ptr<double>();
  auto* to_cosine = cosine.mutable_data_ptr<double>();
  auto* to_shared = shared.mutable_data_ptr<int64_t>();
  parallel_for(0, n, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      double product = 0, sum = 0, squares = 0;
      for (int64_t j = offset[i]; j < offset[i + 1]; ++j) {
        const double other = at_place[static_cast<size_t>(place[j])];
        product += value[j] * other;
        sum += value[j];
        squares += value[j] * value[j];
        to_shared[i] += other != 0;
      }
      const double variances = (squares - sum * sum / N) * (own_squares - own_sum * own_sum / N);
      if (variances > 0) to_pearson[i] = (product - sum * own_sum / N) / std::sqrt(variances);
      if (squares * own_squares > 0) to_cosine[i] = product / std::sqrt(squares * own_squares);
    }
  });
  auto rank = pearson.masked_fill(shared == 0, -2);
  rank[own] = -2;
  const auto order = std::get<1>(rank.sort(/*stable=*/true, 0, /*descending=*/true))
                         .narrow(0, 0, std::clamp<int64_t>(k, 0, (rank > -2).sum().item<int64_t>()));
  return {a.ids_n.index_select(0, order), pearson.index_select(0, order), cosine.index_select(0, order),
          shared.index_select(0, order)};
}

}  // namespace introspect::sae

#include "introspect/statistics/rank_agreement.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "introspect/core/check.h"
#include "statistics/samples.h"

namespace introspect::statistics {
namespace {

void check_lists(const char* who, std::span<const double> a, std::span<const double> b) {
  check<std::invalid_argument>(a.size() == b.size(), who, ": lists must be of one length, got ", a.size(),
                               " and ", b.size());
  check_sample(who, "values", a, 2);
  check_sample(who, "values", b, 2);
}

double pearson(std::span<const double> a, std::span<const double> b) {
  const double mean_a = mean_of(a), mean_b = mean_of(b);
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean_a) * (b[i] - mean_b);
    aa += (a[i] - mean_a) * (a[i] - mean_a);
    bb += (b[i] - mean_b) * (b[i] - mean_b);
  }
  return ab / std::sqrt(aa * bb);
}

/// Pairs among equal neighbours of a sorted list.
template <typename Value>
double tied_pairs(const std::vector<Value>& sorted) {
  double pairs = 0;
  for (size_t first = 0, last = 0; first < sorted.size(); first = last) {
    while (last < sorted.size() && sorted[last] == sorted[first]) ++last;
    const auto n = static_cast<double>(last - first);
    pairs += n * (n - 1) / 2;
  }
  return pairs;
}

/// Sorts values[first, last) and counts the pairs that stood in falling order.
double sort_and_count(std::vector<double>& values, std::vector<double>& room, size_t first, size_t last) {
  if (last - first < 2) return 0;
  const size_t middle = first + (last - first) / 2;
  double inversions =
      sort_and_count(values, room, first, middle) + sort_and_count(values, room, middle, last);
  size_t left = first, right = middle;
  for (size_t out = first; out < last; ++out) {
    const bool from_left = right == last || (left < middle && values[left] <= values[right]);
    if (!from_left) inversions += static_cast<double>(middle - left);
    room[out] = values[from_left ? left++ : right++];
  }
  std::copy(room.begin() + static_cast<std::ptrdiff_t>(first),
            room.begin() + static_cast<std::ptrdiff_t>(last),
            values.begin() + static_cast<std::ptrdiff_t>(first));
  return inversions;
}

std::set<size_t> highest(std::span<const double> values, int64_t k) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](size_t i) { return values[i]; });
  return {order.begin(), order.begin() + k};
}

}  // namespace

double spearman(std::span<const double> a, std::span<const double> b) {
  check_lists("spearman", a, b);
  return pearson(mid_ranks(a), mid_ranks(b));
}

double kendall_tau(std::span<const double> a, std::span<const double> b) {
  check_lists("kendall_tau", a, b);
  const size_t n = a.size();
  std::vector<std::pair<double, double>> pairs;
  for (size_t i = 0; i < n; ++i) pairs.emplace_back(a[i], b[i]);
  std::ranges::sort(pairs);
  std::vector<double> firsts, seconds, room(n);
  for (const auto& [first, second] : pairs) {
    firsts.push_back(first);
    seconds.push_back(second);
  }
  const double discordant = sort_and_count(seconds, room, 0, n);
  const double tied_a = tied_pairs(firsts), tied_b = tied_pairs(seconds), tied_both = tied_pairs(pairs);
  const double all = static_cast<double>(n) * static_cast<double>(n - 1) / 2;
  const double concordant = all - tied_a - tied_b + tied_both - discordant;
  return (concordant - discordant) / std::sqrt(all - tied_a) / std::sqrt(all - tied_b);
}

double top_k_overlap(std::span<const double> a, std::span<const double> b, int64_t k) {
  check_lists("top_k_overlap", a, b);
  check<std::invalid_argument>(k >= 1 && k <= static_cast<int64_t>(a.size()),
                               "top_k_overlap: k must be 1 to ", a.size(), ", got ", k);
  const auto of_a = highest(a, k), of_b = highest(b, k);
  const auto both = std::ranges::count_if(of_a, [&](size_t i) { return of_b.contains(i); });
  return static_cast<double>(both) / static_cast<double>(k);
}

}  // namespace introspect::statistics

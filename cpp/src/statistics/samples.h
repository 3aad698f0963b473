#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

#include "introspect/core/check.h"

namespace introspect::statistics {

/// Throws std::invalid_argument unless there are at least `least` values and all are finite.
inline void check_sample(const char* who, const char* what, std::span<const double> values, size_t least) {
  check<std::invalid_argument>(values.size() >= least, who, ": at least ", least, " ", what,
                               " required, got ", values.size());
  check<std::invalid_argument>(std::ranges::all_of(values, [](double x) { return std::isfinite(x); }), who,
                               ": ", what, " must be finite, got NaN or infinity");
}

inline void check_confidence(const char* who, double confidence) {
  check<std::invalid_argument>(confidence > 0 && confidence < 1, who,
                               ": confidence must lie between 0 and 1, got ", confidence);
}

inline double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Sample standard deviation (n - 1); NaN for fewer than two values.
inline double standard_deviation(std::span<const double> values) {
  const double mean = mean_of(values);
  double sum = 0;
  for (const double x : values) sum += (x - mean) * (x - mean);
  return values.size() > 1 ? std::sqrt(sum / static_cast<double>(values.size() - 1)) : std::nan("");
}

/// The quantile `q` of sorted values, interpolated linearly between order statistics (Hyndman & Fan 1996, type 7).
inline double quantile_of_sorted(std::span<const double> sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

/// Ranks from 1, ties sharing their mean.
inline std::vector<double> mid_ranks(std::span<const double> values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, {}, [&](size_t i) { return values[i]; });
  std::vector<double> ranks(values.size());
  for (size_t first = 0, last = 0; first < order.size(); first = last) {
    while (last < order.size() && values[order[last]] == values[order[first]]) ++last;
    for (size_t i = first; i < last; ++i) ranks[order[i]] = (static_cast<double>(first + last) + 1) / 2;
  }
  return ranks;
}

/// A number 0 to n - 1, the same on every platform (std's distributions are not).
inline size_t draw_below(std::mt19937_64& generator, size_t n) {
  return static_cast<size_t>((static_cast<unsigned __int128>(generator()) * n) >> 64);
}

inline double normal_cdf(double z) {
  return 0.5 * std::erfc(-z / std::sqrt(2.0));
}

/// The inverse of normal_cdf, infinite at 0 and 1.
double normal_quantile(double p);

}  // namespace introspect::statistics

#include "introspect/statistics/null_band.h"

#include <algorithm>
#include <limits>

#include "introspect/core/check.h"
#include "statistics/samples.h"

namespace introspect::statistics {
namespace {

void check_curves(const char* who, std::span<const double> values, const Matrix& nulls) {
  check_sample(who, "points", values, 1);
  check<std::invalid_argument>(nulls.columns == values.size(), who, ": every null must have ", values.size(),
                               " points, got ", nulls.columns);
  check<std::invalid_argument>(nulls.rows > 0, who, ": at least 1 null required, got none");
  check_sample(who, "nulls", nulls.values, 1);
}

}  // namespace

NullBand null_band(double value, std::span<const double> nulls, double confidence) {
  check_sample("null_band", "value", {&value, 1}, 1);
  check_sample("null_band", "nulls", nulls, 1);
  check_confidence("null_band", confidence);
  std::vector<double> sorted(nulls.begin(), nulls.end());
  std::ranges::sort(sorted);
  const auto n = static_cast<double>(nulls.size());
  const auto not_below = static_cast<double>(sorted.end() - std::ranges::lower_bound(sorted, value));
  const auto not_above = static_cast<double>(std::ranges::upper_bound(sorted, value) - sorted.begin());

  NullBand out;
  out.value = value;
  out.n = nulls.size();
  out.mean = mean_of(nulls);
  out.standard_deviation = standard_deviation(nulls);
  const double tail = (1 - confidence) / 2;
  out.band = {quantile_of_sorted(sorted, tail), quantile_of_sorted(sorted, 1 - tail)};
  out.z = out.standard_deviation > 0 ? (value - out.mean) / out.standard_deviation : std::nan("");
  out.rank = 1 + static_cast<size_t>(not_below);
  out.p = (1 + not_below) / (1 + n);
  out.p_two_sided = std::min(1.0, 2 * std::min(out.p, (1 + not_above) / (1 + n)));
  return out;
}

std::vector<NullBand> null_bands(std::span<const double> values, const Matrix& nulls, double confidence) {
  check_curves("null_bands", values, nulls);
  std::vector<NullBand> out;
  std::vector<double> here(nulls.rows);
  for (size_t point = 0; point < values.size(); ++point) {
    for (size_t i = 0; i < nulls.rows; ++i) here[i] = nulls.row(i)[point];
    out.push_back(null_band(values[point], here, confidence));
  }
  return out;
}

MaxNullBand max_null_band(std::span<const double> values, const Matrix& nulls, double confidence,
                          bool studentise) {
  check_curves("max_null_band", values, nulls);
  check_confidence("max_null_band", confidence);
  std::vector<double> scores(values.begin(), values.end());
  std::vector<double> maxima(nulls.rows, -std::numeric_limits<double>::infinity());
  std::vector<double> here(nulls.rows + 1);
  for (size_t point = 0; point < values.size(); ++point) {
    for (size_t i = 0; i < nulls.rows; ++i) here[i] = nulls.row(i)[point];
    here.back() = values[point];
    if (studentise) {
      const double mean = mean_of(here), deviation = standard_deviation(here);
      for (double& x : here) x = deviation > 0 ? (x - mean) / deviation : 0;
    }
    scores[point] = here.back();
    for (size_t i = 0; i < nulls.rows; ++i) maxima[i] = std::max(maxima[i], here[i]);
  }
  MaxNullBand out;
  out.scores = scores;
  out.highest = std::ranges::max(scores);
  out.null_highest = maxima;
  std::ranges::sort(maxima);
  for (const double score : scores) {
    const auto not_below = maxima.end() - std::ranges::lower_bound(maxima, score);
    out.p.push_back(static_cast<double>(1 + not_below) / static_cast<double>(1 + maxima.size()));
  }
  out.p_any = std::ranges::min(out.p);
  out.threshold = quantile_of_sorted(maxima, confidence);
  return out;
}

}  // namespace introspect::statistics

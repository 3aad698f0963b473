#include "introspect/statistics/clustered_mean.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "introspect/core/check.h"
#include "statistics/clusters.h"
#include "statistics/distributions.h"
#include "statistics/samples.h"

namespace introspect::statistics {
namespace {

/// Shares of sign flips whose sum is at least and at most that of the values as they are.
std::pair<double, double> flip_p(const std::vector<double>& values, int64_t flips, uint64_t seed) {
  double observed = 0, size = 0;
  for (const double x : values) {
    observed += x;
    size += std::abs(x);
  }
  // Sums in another order must not tell equal numbers apart.
  const double tie = 1e-12 * size;
  int64_t n = 0, above = 0, below = 0;
  const auto count = [&](double sum) {
    ++n;
    above += sum >= observed - tie;
    below += sum <= observed + tie;
  };
  if (values.size() < 63 && (int64_t{1} << values.size()) <= flips) {
    // All of them in Gray's order: each differs from the one before in one sign.
    std::vector<double> signs(values.size(), 1.0);
    double sum = observed;
    count(sum);
    for (uint64_t i = 1; i < (uint64_t{1} << values.size()); ++i) {
      const auto k = static_cast<size_t>(std::countr_zero(i));
      sum -= 2 * signs[k] * values[k];
      signs[k] = -signs[k];
      count(sum);
    }
  } else {
    std::mt19937_64 generator(seed);
    count(observed);
    while (n < flips) {
      double sum = 0;
      uint64_t bits = 0;
      for (size_t k = 0; k < values.size(); ++k, bits >>= 1) {
        if (k % 64 == 0) bits = generator();
        sum += (bits & 1) != 0 ? values[k] : -values[k];
      }
      count(sum);
    }
  }
  return {static_cast<double>(above) / static_cast<double>(n),
          static_cast<double>(below) / static_cast<double>(n)};
}

}  // namespace

std::vector<double> cluster_means(const char* who, std::span<const double> values,
                                  const std::vector<std::string>& clusters) {
  check_sample(who, "values", values, 2);
  check<std::invalid_argument>(clusters.size() == values.size(), who, ": ", values.size(),
                               " clusters required, one for each value, got ", clusters.size());
  std::unordered_map<std::string, size_t> places;
  std::vector<double> sums, counts;
  for (size_t i = 0; i < values.size(); ++i) {
    const auto [place, is_new] = places.emplace(clusters[i], sums.size());
    if (is_new) {
      sums.push_back(0);
      counts.push_back(0);
    }
    sums[place->second] += values[i];
    ++counts[place->second];
  }
  check<std::invalid_argument>(sums.size() >= 2, who, ": at least 2 clusters required, got ", sums.size());
  for (size_t k = 0; k < sums.size(); ++k) sums[k] /= counts[k];
  check<std::invalid_argument>(std::ranges::adjacent_find(sums, std::ranges::not_equal_to{}) != sums.end(),
                               who, ": the clusters' means must differ, all ", sums.size(), " are ",
                               sums.front(), " (is one of them a copy?)");
  return sums;
}

ClusteredMean clustered_mean(std::span<const double> values, const std::vector<std::string>& clusters,
                             const ClusteredMeanOptions& options) {
  const char* who = "clustered_mean";
  check_confidence(who, options.confidence);
  check<std::invalid_argument>(std::isfinite(options.null), who, ": null must be finite, got ", options.null);
  check<std::invalid_argument>(options.flips >= 2, who, ": at least 2 flips required, got ", options.flips);
  auto means = cluster_means(who, values, clusters);
  const auto n = static_cast<double>(means.size());
  const double degrees = n - 1;
  ClusteredMean out;
  out.value = mean_of(means);
  out.standard_error = standard_deviation(means) / std::sqrt(n);
  out.clusters = static_cast<int64_t>(means.size());
  const double reach = student_quantile((1 + options.confidence) / 2, degrees) * out.standard_error;
  out.interval = {out.value - reach, out.value + reach};
  const double t = (out.value - options.null) / out.standard_error;
  out.p_greater = student_cdf(-t, degrees);
  out.p_less = student_cdf(t, degrees);
  for (double& mean : means) mean -= options.null;
  std::tie(out.p_greater_by_flips, out.p_less_by_flips) = flip_p(means, options.flips, options.seed);
  return out;
}

}  // namespace introspect::statistics

#include "introspect/statistics/equivalence.h"

#include <algorithm>
#include <cmath>

#include "introspect/core/check.h"
#include "statistics/clusters.h"
#include "statistics/distributions.h"
#include "statistics/samples.h"

namespace introspect::statistics {
namespace {

double error_of(const std::vector<double>& means) {
  return standard_deviation(means) / std::sqrt(static_cast<double>(means.size()));
}

/// t of the means of clusters drawn with replacement, measured from the sample's mean; in order.
///
/// A draw whose clusters are all alike has no error and is drawn again.
std::vector<double> drawn_t(const std::vector<double>& means, const EquivalenceOptions& options) {
  std::mt19937_64 generator(options.seed);
  const double center = mean_of(means);
  std::vector<double> out, drawn(means.size());
  while (static_cast<int64_t>(out.size()) < options.resamples) {
    for (double& x : drawn) x = means[draw_below(generator, means.size())];
    if (const double error = error_of(drawn); error > 0) out.push_back((mean_of(drawn) - center) / error);
  }
  std::ranges::sort(out);
  return out;
}

}  // namespace

Equivalence equivalence(std::span<const double> values, const std::vector<std::string>& clusters,
                        Interval bounds, const EquivalenceOptions& options) {
  const char* who = "equivalence";
  check<std::invalid_argument>(
      std::isfinite(bounds.low) && std::isfinite(bounds.high) && bounds.low < bounds.high, who,
      ": bounds must be finite and the low one below the high one, got ", bounds.low, " and ", bounds.high);
  check<std::invalid_argument>(options.level > 0 && options.level < 0.5, who,
                               ": level must lie between 0 and 0.5, got ", options.level);
  check<std::invalid_argument>(options.resamples >= 2, who, ": at least 2 resamples required, got ",
                               options.resamples);
  const auto means = cluster_means(who, values, clusters);
  Equivalence out;
  out.mean.value = mean_of(means);
  const double error = out.mean.standard_error = error_of(means);
  const double from_low = (out.mean.value - bounds.low) / error,
               from_high = (out.mean.value - bounds.high) / error;
  double lowest = 0, highest = 0;  // quantiles of t at either level
  if (options.errors == ClusterErrors::kStudent) {
    const double degrees = static_cast<double>(means.size()) - 1;
    out.p_low = student_cdf(-from_low, degrees);
    out.p_high = student_cdf(from_high, degrees);
    highest = student_quantile(1 - options.level, degrees);
    lowest = -highest;
  } else {
    const auto drawn = drawn_t(means, options);
    const auto n = static_cast<double>(drawn.size());
    out.p_low = (1 + static_cast<double>(drawn.end() - std::ranges::lower_bound(drawn, from_low))) / (n + 1);
    out.p_high =
        (1 + static_cast<double>(std::ranges::upper_bound(drawn, from_high) - drawn.begin())) / (n + 1);
    lowest = quantile_of_sorted(drawn, options.level);
    highest = quantile_of_sorted(drawn, 1 - options.level);
  }
  out.p = std::max(out.p_low, out.p_high);
  out.mean.interval = {out.mean.value - highest * error, out.mean.value - lowest * error};
  out.smallest_bound = std::max(std::abs(out.mean.interval.low), std::abs(out.mean.interval.high));
  return out;
}

}  // namespace introspect::statistics

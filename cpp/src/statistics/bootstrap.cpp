#include "introspect/statistics/bootstrap.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include <torch/types.h>

#include "introspect/core/check.h"
#include "statistics/samples.h"

namespace introspect::statistics {
namespace {

/// A factor made ready: its levels 0 to n - 1, in the groups within which they are drawn.
struct Drawn {
  std::vector<size_t> level_of;             // of each observation
  std::vector<std::vector<size_t>> groups;  // the levels of each
  size_t n_levels = 0;
};

/// `within` holds, for each observation, what its level is to be drawn within.
Drawn ready(const std::vector<std::string>& levels, const std::vector<size_t>& within) {
  Drawn out;
  std::map<std::pair<size_t, std::string>, size_t> numbers;
  std::map<size_t, std::vector<size_t>> groups;
  for (size_t i = 0; i < levels.size(); ++i) {
    const auto [place, is_new] = numbers.emplace(std::pair(within[i], levels[i]), numbers.size());
    if (is_new) groups[within[i]].push_back(place->second);
    out.level_of.push_back(place->second);
  }
  for (auto& [key, members] : groups) out.groups.push_back(std::move(members));
  out.n_levels = numbers.size();
  return out;
}

/// Whether each level lies in one arm only.
bool is_nested(const std::vector<std::string>& levels, std::span<const int64_t> arms) {
  std::map<std::string, int64_t> arm_of;
  for (size_t i = 0; i < levels.size(); ++i)
    if (arm_of.emplace(levels[i], arms[i]).first->second != arms[i]) return false;
  return true;
}

std::vector<Drawn> ready(const std::vector<Factor>& factors, std::span<const int64_t> arms) {
  const size_t n = arms.size();
  if (factors.empty()) {
    std::vector<std::string> each;
    for (size_t i = 0; i < n; ++i) each.push_back(std::to_string(i));
    return {ready(each, {arms.begin(), arms.end()})};
  }
  std::vector<Drawn> out;
  for (size_t f = 0; f < factors.size(); ++f) {
    const auto& [name, levels, within] = factors[f];
    check<std::invalid_argument>(levels.size() == n, "bootstrap: factor '", name, "' must have ", n,
                                 " levels, one for each observation, got ", levels.size());
    std::vector<size_t> around(n, 0);
    if (!within.empty()) {
      const auto before = factors.begin() + static_cast<std::ptrdiff_t>(f);
      const auto outer = std::ranges::find(factors.begin(), before, within, &Factor::name);
      check<std::invalid_argument>(outer != before, "bootstrap: factor '", name,
                                   "' must lie within a factor that comes before it, got '", within, "'");
      around = out[static_cast<size_t>(outer - factors.begin())].level_of;
    } else if (is_nested(levels, arms)) {
      around.assign(arms.begin(), arms.end());
    }
    out.push_back(ready(levels, around));
  }
  return out;
}

/// The product over factors of each level's count, for every observation.
void weigh(const std::vector<Drawn>& factors, const std::vector<std::vector<double>>& counts,
           std::vector<double>& weights) {
  for (size_t i = 0; i < weights.size(); ++i) {
    double weight = 1;
    for (size_t f = 0; f < factors.size(); ++f) weight *= counts[f][factors[f].level_of[i]];
    weights[i] = weight;
  }
}

std::vector<double> replicate(const std::vector<Drawn>& factors, const WeightedStatistic& statistic, size_t n,
                              const BootstrapOptions& options) {
  std::mt19937_64 generator(options.seed);
  std::vector<std::vector<double>> counts;
  for (const auto& factor : factors) counts.emplace_back(factor.n_levels);
  std::vector<double> weights(n), replicates;
  replicates.reserve(static_cast<size_t>(options.resamples));
  for (int64_t draws = 0; static_cast<int64_t>(replicates.size()) < options.resamples; ++draws) {
    check<std::invalid_argument>(
        draws < 10 * options.resamples + 100,
        "bootstrap: the statistic must be defined for most resamples, the design is too sparse");
    for (size_t f = 0; f < factors.size(); ++f) {
      std::ranges::fill(counts[f], 0.0);
      for (const auto& group : factors[f].groups)
        for (size_t k = 0; k < group.size(); ++k) ++counts[f][group[draw_below(generator, group.size())]];
    }
    weigh(factors, counts, weights);
    const double value = statistic(weights);
    if (!std::isnan(value)) replicates.push_back(value);
  }
  return replicates;
}

/// Efron's acceleration from the statistic without each level in turn.
double acceleration_of(const std::vector<Drawn>& factors, const WeightedStatistic& statistic, size_t n) {
  std::vector<std::vector<double>> counts;
  for (const auto& factor : factors) counts.emplace_back(factor.n_levels, 1.0);
  std::vector<double> weights(n);
  double cubes = 0, squares = 0;
  for (size_t f = 0; f < factors.size(); ++f) {
    for (const auto& group : factors[f].groups) {
      if (group.size() < 2) continue;
      std::vector<double> without;
      for (const size_t level : group) {
        counts[f][level] = 0;
        weigh(factors, counts, weights);
        counts[f][level] = 1;
        without.push_back(statistic(weights));
        check<std::invalid_argument>(
            !std::isnan(without.back()),
            "bootstrap: BCa requires the statistic to be defined without any one level; ask for percentiles");
      }
      const double mean = mean_of(without);
      const auto m = static_cast<double>(group.size());
      for (const double x : without) {
        const double influence = (m - 1) * (mean - x) / m;
        squares += influence * influence;
        cubes += influence * influence * influence;
      }
    }
  }
  return squares > 0 ? cubes / (6 * std::pow(squares, 1.5)) : 0;
}

Estimate run(const std::vector<Factor>& factors, std::span<const int64_t> arms,
             const WeightedStatistic& statistic, const BootstrapOptions& options) {
  const size_t n = arms.size();
  check<std::invalid_argument>(n >= 2, "bootstrap: at least 2 observations required, got ", n);
  check<std::invalid_argument>(options.resamples >= 2, "bootstrap: at least 2 resamples required, got ",
                               options.resamples);
  check_confidence("bootstrap", options.confidence);
  const auto drawn = ready(factors, arms);
  const bool varies = std::ranges::any_of(drawn, [](const Drawn& factor) {
    return std::ranges::any_of(factor.groups, [](const auto& group) { return group.size() > 1; });
  });
  check<std::invalid_argument>(varies, "bootstrap: a factor with at least 2 levels to draw from is required");
  const double value = statistic(std::vector<double>(n, 1.0));
  check<std::invalid_argument>(!std::isnan(value),
                               "bootstrap: the statistic must be defined for the sample itself");
  const auto replicates = replicate(drawn, statistic, n, options);
  std::optional<double> acceleration;
  if (options.method == IntervalMethod::kBca) acceleration = acceleration_of(drawn, statistic, n);
  return {value, bootstrap_interval(replicates, value, options.confidence, acceleration),
          standard_deviation(replicates)};
}

}  // namespace

double normal_quantile(double p) {
  return at::special_ndtri(torch::tensor(p, torch::kFloat64)).item<double>();
}

Estimate bootstrap(size_t n_observations, const std::vector<Factor>& factors,
                   const WeightedStatistic& statistic, const BootstrapOptions& options) {
  return run(factors, std::vector<int64_t>(n_observations, 0), statistic, options);
}

Estimate bootstrap_mean(std::span<const double> values, const std::vector<Factor>& factors,
                        const BootstrapOptions& options) {
  check_sample("bootstrap_mean", "values", values, 2);
  const auto mean = [&](std::span<const double> weights) {
    double sum = 0, total = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      sum += weights[i] * values[i];
      total += weights[i];
    }
    return sum / total;
  };
  return bootstrap(values.size(), factors, mean, options);
}

Estimate bootstrap_difference(std::span<const double> values, std::span<const int64_t> arms,
                              const std::vector<Factor>& factors, const BootstrapOptions& options) {
  check_sample("bootstrap_difference", "values", values, 2);
  check<std::invalid_argument>(arms.size() == values.size(), "bootstrap_difference: ", values.size(),
                               " arms required, one for each value, got ", arms.size());
  for (const int64_t arm : arms)
    check<std::invalid_argument>(arm == 0 || arm == 1, "bootstrap_difference: arms must be 0 or 1, got ",
                                 arm);
  for (const int64_t arm : {0, 1})
    check<std::invalid_argument>(std::ranges::find(arms, arm) != arms.end(),
                                 "bootstrap_difference: values of both arms required, got none of arm ", arm);
  const auto difference = [&](std::span<const double> weights) {
    double sums[2] = {0, 0}, totals[2] = {0, 0};
    for (size_t i = 0; i < values.size(); ++i) {
      sums[arms[i]] += weights[i] * values[i];
      totals[arms[i]] += weights[i];
    }
    return sums[1] / totals[1] - sums[0] / totals[0];
  };
  return run(factors, arms, difference, options);
}

Interval bootstrap_interval(std::span<const double> replicates, double estimate, double confidence,
                            std::optional<double> acceleration) {
  check_sample("bootstrap_interval", "replicates", replicates, 1);
  check_confidence("bootstrap_interval", confidence);
  std::vector<double> sorted(replicates.begin(), replicates.end());
  std::ranges::sort(sorted);
  double low = (1 - confidence) / 2, high = 1 - low;
  if (acceleration) {
    const auto at_place = [&](auto place) { return static_cast<double>(place - sorted.begin()); };
    // Sums in another order must not tell equal numbers apart.
    const double tie = 1e-10 * (sorted.back() - sorted.front());
    const double below = at_place(std::ranges::lower_bound(sorted, estimate - tie));
    const double not_above = at_place(std::ranges::upper_bound(sorted, estimate + tie));
    const double share = (below + not_above) / (2 * static_cast<double>(sorted.size()));
    const double bias = normal_quantile(share);
    const auto corrected = [&](double p) {
      if (std::isinf(bias)) return share;  // every replicate on one side: its end is all that is known
      const double z = bias + normal_quantile(p);
      return normal_cdf(bias + z / (1 - *acceleration * z));
    };
    low = corrected(low);
    high = corrected(high);
  }
  return {quantile_of_sorted(sorted, low), quantile_of_sorted(sorted, high)};
}

}  // namespace introspect::statistics

#include "introspect/statistics/detection.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "introspect/core/check.h"
#include "statistics/samples.h"

namespace introspect::statistics {
namespace {

/// log of the binomial coefficients n over 0 to n.
std::vector<double> log_binomials(int64_t n) {
  std::vector<double> out;
  const auto log_factorial = [](int64_t k) { return std::lgamma(static_cast<double>(k) + 1); };
  for (int64_t k = 0; k <= n; ++k) out.push_back(log_factorial(n) - log_factorial(k) - log_factorial(n - k));
  return out;
}

/// P(first <= X <= last) for X binomial.
double binomial_sum(const std::vector<double>& log_binomials, int64_t first, int64_t last, double p) {
  const auto n = static_cast<int64_t>(log_binomials.size()) - 1;
  if (p <= 0) return first == 0 ? 1 : 0;
  if (p >= 1) return last == n ? 1 : 0;
  const double log_p = std::log(p), log_q = std::log1p(-p);
  double sum = 0;
  for (int64_t k = first; k <= last; ++k)
    sum += std::exp(log_binomials[static_cast<size_t>(k)] + static_cast<double>(k) * log_p +
                    static_cast<double>(n - k) * log_q);
  return std::min(sum, 1.0);
}

/// The p in [0, 1] at which a function that rises with p becomes positive.
template <typename Function>
double root(const Function& rising) {
  double low = 0, high = 1;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (rising(middle) > 0 ? high : low) = middle;
  }
  return (low + high) / 2;
}

void check_counts(const char* who, int64_t successes, int64_t trials) {
  check<std::invalid_argument>(trials > 0, who, ": at least 1 trial required, got ", trials);
  check<std::invalid_argument>(successes >= 0 && successes <= trials, who, ": successes must be 0 to ",
                               trials, ", got ", successes);
}

}  // namespace

Proportion proportion(int64_t successes, int64_t trials, double confidence) {
  check_counts("proportion", successes, trials);
  check_confidence("proportion", confidence);
  const double tail = (1 - confidence) / 2;
  const auto coefficients = log_binomials(trials);
  Proportion out{successes, trials, static_cast<double>(successes) / static_cast<double>(trials), {0, 1}};
  if (successes > 0)
    out.interval.low =
        root([&](double p) { return binomial_sum(coefficients, successes, trials, p) - tail; });
  if (successes < trials)
    out.interval.high = root([&](double p) { return tail - binomial_sum(coefficients, 0, successes, p); });
  return out;
}

double binomial_p(int64_t successes, int64_t trials, double chance) {
  check_counts("binomial_p", successes, trials);
  check<std::invalid_argument>(chance >= 0 && chance <= 1, "binomial_p: chance must be 0 to 1, got ", chance);
  return binomial_sum(log_binomials(trials), successes, trials, chance);
}

Sensitivity sensitivity(int64_t hits, int64_t misses, int64_t false_alarms, int64_t correct_rejections,
                        double confidence) {
  check<std::invalid_argument>(hits >= 0 && misses >= 0 && false_alarms >= 0 && correct_rejections >= 0 &&
                                   hits + misses > 0 && false_alarms + correct_rejections > 0,
                               "sensitivity: counts of at least 0 and a trial of either kind required, got ",
                               hits, " hits, ", misses, " misses, ", false_alarms, " false alarms and ",
                               correct_rejections, " correct rejections");
  const auto corrected = [](int64_t yes, int64_t no) {
    return normal_quantile((static_cast<double>(yes) + 0.5) / (static_cast<double>(yes + no) + 1));
  };
  const double z_hit = corrected(hits, misses), z_false = corrected(false_alarms, correct_rejections);
  return {proportion(hits, hits + misses, confidence),
          proportion(false_alarms, false_alarms + correct_rejections, confidence), z_hit - z_false,
          -(z_hit + z_false) / 2};
}

Estimate auc(std::span<const double> positives, std::span<const double> negatives, double confidence) {
  check_sample("auc", "positives", positives, 2);
  check_sample("auc", "negatives", negatives, 2);
  check_confidence("auc", confidence);
  std::vector<double> all(positives.begin(), positives.end());
  all.insert(all.end(), negatives.begin(), negatives.end());
  const auto together = mid_ranks(all);
  const auto m = static_cast<double>(positives.size()), n = static_cast<double>(negatives.size());
  // The share of the other class that each score lies above (positives) or below (negatives).
  const auto shares = [&](std::span<const double> own, size_t offset, double others) {
    const auto alone = mid_ranks(own);
    std::vector<double> out;
    for (size_t i = 0; i < own.size(); ++i) out.push_back((together[offset + i] - alone[i]) / others);
    return out;
  };
  const auto above = shares(positives, 0, n), not_below = shares(negatives, positives.size(), m);
  const double value = mean_of(above);
  const double s_positive = standard_deviation(above), s_negative = standard_deviation(not_below);
  const double error = std::sqrt(s_positive * s_positive / m + s_negative * s_negative / n);
  const double z = normal_quantile((1 + confidence) / 2);
  return {value, {std::max(0.0, value - z * error), std::min(1.0, value + z * error)}, error};
}

MatchedRate false_alarms_at(std::span<const double> positives, std::span<const double> negatives,
                            double hit_rate) {
  check_sample("false_alarms_at", "positives", positives, 1);
  check_sample("false_alarms_at", "negatives", negatives, 1);
  check<std::invalid_argument>(hit_rate > 0 && hit_rate <= 1,
                               "false_alarms_at: hit_rate must be above 0 and at most 1, got ", hit_rate);
  std::vector<double> falling(positives.begin(), positives.end());
  std::ranges::sort(falling, std::ranges::greater{});
  const auto n = static_cast<double>(falling.size());
  // Rounding must not ask for one hit more: 0.3 * 10 > 3.
  const auto needed = std::max(1.0, std::ceil(hit_rate * n - 1e-9));
  MatchedRate out;
  out.threshold = falling[static_cast<size_t>(needed) - 1];
  const auto passing = [&](std::span<const double> scores) {
    return static_cast<double>(std::ranges::count_if(scores, [&](double x) { return x >= out.threshold; })) /
           static_cast<double>(scores.size());
  };
  out.hit_rate = passing(positives);
  out.false_alarm_rate = passing(negatives);
  return out;
}

}  // namespace introspect::statistics

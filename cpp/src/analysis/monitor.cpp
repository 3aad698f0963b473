#include "introspect/analysis/monitor.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>

#include "introspect/core/check.h"

#include "statistics/samples.h"

namespace introspect::analysis {

double threshold_at(std::span<const double> harmless, double false_positive_rate) {
  statistics::check_sample("threshold_at", "scores", harmless, 1);
  check<std::invalid_argument>(false_positive_rate >= 0 && false_positive_rate < 1,
                               "threshold_at: the rate must be from 0 to below 1, got ", false_positive_rate);
  std::vector<double> sorted(harmless.begin(), harmless.end());
  std::ranges::sort(sorted, std::greater<>());
  // 0.01 of 300 texts are 3, though the product is a little less.
  const auto allowed =
      static_cast<size_t>(std::floor(false_positive_rate * static_cast<double>(sorted.size()) + 1e-9));
  return std::nextafter(sorted[allowed], std::numeric_limits<double>::infinity());
}

MonitorReport monitor_report(std::span<const double> positives, std::span<const double> negatives,
                             double threshold, double confidence) {
  const auto reach = [&](std::span<const double> scores) {
    return statistics::proportion(std::ranges::count_if(scores, [&](double x) { return x >= threshold; }),
                                  static_cast<int64_t>(scores.size()), confidence);
  };
  MonitorReport out;
  out.threshold = threshold;
  out.auc = statistics::auc(positives, negatives, confidence);
  out.recall = reach(positives);
  out.false_alarms = reach(negatives);
  return out;
}

double calibration_error(std::span<const double> probabilities, std::span<const int64_t> labels,
                         int64_t bins) {
  statistics::check_sample("calibration_error", "probabilities", probabilities, 1);
  check<std::invalid_argument>(labels.size() == probabilities.size(),
                               "calibration_error: every probability must have a label, got ", labels.size(),
                               " labels for ", probabilities.size());
  check<std::invalid_argument>(bins >= 1, "calibration_error: there must be a bin, got ", bins);
  std::vector<double> difference(static_cast<size_t>(bins));
  for (size_t i = 0; i < labels.size(); ++i) {
    const double p = probabilities[i];
    check<std::invalid_argument>(p >= 0 && p <= 1,
                                 "calibration_error: probabilities must be from 0 to 1, got ", p);
    check<std::invalid_argument>(labels[i] == 0 || labels[i] == 1,
                                 "calibration_error: labels must be 0 or 1, got ", labels[i]);
    const auto bin = std::min(static_cast<size_t>(p * static_cast<double>(bins)), difference.size() - 1);
    difference[bin] += p - static_cast<double>(labels[i]);
  }
  double sum = 0;
  for (const double one : difference) sum += std::abs(one);
  return sum / static_cast<double>(labels.size());
}

}  // namespace introspect::analysis

#include "introspect/statistics/multiple_comparisons.h"

#include <algorithm>
#include <numeric>

#include "introspect/core/check.h"
#include "statistics/samples.h"

namespace introspect::statistics {

std::vector<double> adjusted_p(std::span<const double> p_values, Correction correction) {
  check_sample("adjusted_p", "p-values", p_values, 1);
  for (const double p : p_values)
    check<std::invalid_argument>(p >= 0 && p <= 1, "adjusted_p: p-values must be 0 to 1, got ", p);
  const size_t n = p_values.size();
  std::vector<size_t> rising(n);
  std::iota(rising.begin(), rising.end(), size_t{0});
  std::ranges::stable_sort(rising, {}, [&](size_t i) { return p_values[i]; });

  std::vector<double> out(n);
  const auto tests = static_cast<double>(n);
  if (correction == Correction::kBonferroni) {
    for (size_t i = 0; i < n; ++i) out[i] = std::min(1.0, tests * p_values[i]);
  } else if (correction == Correction::kHolm) {
    double largest = 0;
    for (size_t k = 0; k < n; ++k) {
      largest = std::max(largest, static_cast<double>(n - k) * p_values[rising[k]]);
      out[rising[k]] = std::min(1.0, largest);
    }
  } else {
    double factor = tests;
    if (correction == Correction::kBenjaminiYekutieli)
      for (size_t k = 2; k <= n; ++k) factor += tests / static_cast<double>(k);
    double smallest = 1;
    for (size_t k = n; k > 0; --k) {
      smallest = std::min(smallest, factor / static_cast<double>(k) * p_values[rising[k - 1]]);
      out[rising[k - 1]] = smallest;
    }
  }
  return out;
}

}  // namespace introspect::statistics

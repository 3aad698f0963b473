#include "introspect/statistics/statistics.h"

#include <catch2/catch.hpp>

#include <cmath>

using namespace introspect::statistics;

namespace {

const std::vector<double> kValues = {0.5, -1, 2, 7, 3.5, -2, 0, 4};

double weighted_mean(std::span<const double> weights) {
  double sum = 0, total = 0;
  for (size_t i = 0; i < kValues.size(); ++i) {
    sum += weights[i] * kValues[i];
    total += weights[i];
  }
  return sum / total;
}

}  // namespace

TEST_CASE("a statistic of one's own is bootstrapped as the mean is", "[statistics]") {
  const auto own = bootstrap(kValues.size(), {}, weighted_mean);
  const auto mean = bootstrap_mean(kValues);
  REQUIRE(own.value == mean.value);
  REQUIRE(own.interval.low == mean.interval.low);
  REQUIRE(own.interval.high == mean.interval.high);
}

TEST_CASE("draws for which a statistic is not defined are drawn again, up to a point", "[statistics]") {
  const BootstrapOptions options{.resamples = 200, .method = IntervalMethod::kPercentile};
  const auto without_first = [](std::span<const double> weights) {
    return weights[0] > 0 ? weighted_mean(weights) : std::nan("");
  };
  REQUIRE(std::isfinite(bootstrap(kValues.size(), {}, without_first, options).standard_error));
  const auto only_the_sample = [](std::span<const double> weights) {
    for (const double w : weights)
      if (w != 1) return std::nan("");
    return 1.0;
  };
  REQUIRE_THROWS_AS(bootstrap(kValues.size(), {}, only_the_sample, options), std::invalid_argument);
}

TEST_CASE("an exact interval of no success ends where that becomes unlikely", "[statistics]") {
  const auto none = proportion(0, 10, 0.95);
  REQUIRE(none.interval.low == 0);
  REQUIRE(none.interval.high == Approx(1 - std::pow(0.025, 0.1)));  // (1 - p)^10 = 0.025
}

#include <catch2/catch.hpp>

#include <cmath>

#include "introspect/statistics/clustered_mean.h"
#include "introspect/statistics/equivalence.h"
#include "introspect/statistics/meta_analysis.h"
#include "statistics/distributions.h"

using namespace introspect::statistics;

TEST_CASE("Student's t of one and of two degrees of freedom has a closed form", "[statistics]") {
  for (const double t : {-40.0, -2.5, -0.3, 0.0, 1e-6, 0.7, 3.0, 500.0}) {
    REQUIRE(student_cdf(t, 1) == Approx(0.5 + std::atan(t) / M_PI).epsilon(1e-12));
    REQUIRE(student_cdf(t, 2) == Approx(0.5 + t / (2 * std::sqrt(2 + t * t))).epsilon(1e-12));
  }
  REQUIRE(student_cdf(-1e8, 3) > 0);  // far out in the tail nothing is lost to 1 - x
  REQUIRE(student_quantile(student_cdf(-2.5, 4), 4) == Approx(-2.5).epsilon(1e-12));
  REQUIRE(std::isinf(student_quantile(1, 4)));
}

TEST_CASE("chi squared of two degrees of freedom is an exponential distribution", "[statistics]") {
  for (const double x : {0.1, 1.0, 7.0}) {
    REQUIRE(chi_squared_cdf(x, 2) == Approx(1 - std::exp(-x / 2)).epsilon(1e-12));
    REQUIRE(chi_squared_quantile(1 - std::exp(-x / 2), 2) == Approx(x).epsilon(1e-9));
  }
}

TEST_CASE("clusters count alike, whatever their sizes", "[statistics]") {
  const std::vector<double> values = {1, 3, 5, 5, 5, 8};  // means 2, 5, 8
  const auto found = clustered_mean(values, {"a", "a", "b", "b", "b", "c"});
  REQUIRE(found.value == 5);
  REQUIRE(found.clusters == 3);
  REQUIRE(found.standard_error == Approx(std::sqrt(3.0)));  // 3 / sqrt(3)
  REQUIRE(found.p_greater_by_flips == 1.0 / 8);
  REQUIRE(found.p_less_by_flips == 1);
}

TEST_CASE("clusters that are copies of one another are refused", "[statistics]") {
  const std::vector<double> values = {2, 2, 2};
  REQUIRE_THROWS_AS(clustered_mean(values, {"a", "b", "c"}), std::invalid_argument);
  REQUIRE_THROWS_AS(clustered_mean(values, {"a", "a", "a"}), std::invalid_argument);
  REQUIRE_THROWS_AS(equivalence(values, {"a", "b", "c"}, {-1, 1}), std::invalid_argument);
}

TEST_CASE("equivalence is shown within its smallest bound and within none below", "[statistics]") {
  const std::vector<double> values = {0.3, -0.2, 0.1, 0.25, -0.05};
  const std::vector<std::string> each = {"a", "b", "c", "d", "e"};
  const double bound = equivalence(values, each, {-1, 1}).smallest_bound;
  REQUIRE(equivalence(values, each, {-1.001 * bound, 1.001 * bound}).p < 0.05);
  REQUIRE(equivalence(values, each, {-0.999 * bound, 0.999 * bound}).p > 0.05);
}

TEST_CASE("two studies of equal error have a variance between them that is seen at once", "[statistics]") {
  const std::vector<double> effects = {1, 3}, errors = {0.5, 0.5};
  for (const auto method :
       {Heterogeneity::kReml, Heterogeneity::kPauleMandel, Heterogeneity::kDerSimonianLaird}) {
    const auto found = meta_analysis(effects, errors, {method});
    REQUIRE(found.tau_squared == Approx(2 - 0.25));  // variance of the effects less that of their errors
    REQUIRE(found.effect.value == Approx(2));
    REQUIRE(found.i_squared == Approx(1.75 / 2));
    REQUIRE(std::isnan(found.prediction.low));
  }
}

#include "introspect/analysis/metric.h"

#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

using namespace introspect;
using analysis::Metric;
using Kind = analysis::MetricTerm::Kind;

namespace {

/// Two positions of four tokens: probabilities 0.1, 0.2, 0.3, 0.4, and all alike.
torch::Tensor logits_TV() {
  return torch::tensor({{0.1, 0.2, 0.3, 0.4}, {0.25, 0.25, 0.25, 0.25}}, torch::kFloat64).log();
}

double value(const Metric& metric, const torch::Tensor& logits, const torch::Tensor& reference = {}) {
  return analysis::of_logits(metric, logits, reference).item<double>();
}

Metric at_first(Kind kind, std::vector<int64_t> right, std::vector<int64_t> wrong = {}) {
  return {{{.kind = kind, .right = std::move(right), .wrong = std::move(wrong), .position = 0}}};
}

}  // namespace

TEST_CASE("metrics are their formulas", "[metric]") {
  const auto logits = logits_TV();
  const auto is = [](double expected) { return Approx(expected).epsilon(1e-12).margin(1e-12); };
  CHECK(value(at_first(Kind::logit_difference, {3}, {0}), logits) == is(std::log(4)));
  CHECK(value(at_first(Kind::logit_difference, {3, 1}, {0}), logits) ==
        is(std::log(4) / 2 + std::log(2) / 2));
  CHECK(value(at_first(Kind::log_probability, {2, 3}), logits) == is(std::log(0.7)));
  CHECK(value(at_first(Kind::probability, {1, 2}), logits) == is(0.5));
  CHECK(value(at_first(Kind::probability_difference, {3}, {0, 1}), logits) == is(0.1));
  CHECK(value(at_first(Kind::rank, {3}), logits) == 1);
  CHECK(value(at_first(Kind::rank, {0}), logits) == 4);
  CHECK(value(at_first(Kind::accuracy, {0, 2}, {1}), logits) == 1);
  CHECK(value(at_first(Kind::accuracy, {2}, {3}), logits) == 0);

  auto divergence = at_first(Kind::divergence, {});
  divergence.terms[0].reference_V = logits[1];
  const double kl = 0.25 * (std::log(2.5) + std::log(1.25) + std::log(0.25 / 0.3) + std::log(0.625));
  CHECK(value(divergence, logits) == is(kl));
  auto sum = divergence;
  sum.terms[0].weight = -2;
  sum.terms.push_back({.kind = Kind::probability, .right = {0}});  // at the last position
  CHECK(value(sum, logits) == is(-2 * kl + 0.25));
}

TEST_CASE("a metric names the positions and tokens that it needs", "[metric]") {
  Metric metric{{{.kind = Kind::logit_difference, .right = {7}, .wrong = {2}, .position = -1},
                 {.kind = Kind::logit_difference, .right = {2}, .wrong = {5}, .position = 1}}};
  const auto reads = analysis::reads_of(metric, 4, 10);
  CHECK(reads.positions == std::vector<int64_t>{1, 3});
  CHECK(reads.vocab_ids.equal(torch::tensor({2, 5, 7}, torch::kLong)));
  CHECK_FALSE(reads.needs_reference);
  metric.terms.push_back({.kind = Kind::divergence});
  CHECK(analysis::reads_of(metric, 4, 10).needs_reference);
  CHECK_FALSE(analysis::reads_of(metric, 4, 10).vocab_ids.defined());  // all of them
}

TEST_CASE("logits that are not numbers have no rank and no accuracy", "[metric]") {
  auto logits = logits_TV();
  logits[0][2] = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isnan(value(at_first(Kind::rank, {3}), logits)));
  CHECK(std::isnan(value(at_first(Kind::accuracy, {2}, {3}), logits)));
  CHECK(value(at_first(Kind::accuracy, {3}, {0}), logits) == 1);  // the others are numbers
}

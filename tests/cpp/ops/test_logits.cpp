#include <catch2/catch.hpp>

#include <cmath>

#include <ATen/ATen.h>

#include "introspect/core/error.h"
#include "introspect/ops/logits.h"

using namespace introspect;

namespace {

/// log of these probabilities, up to a constant.
torch::Tensor logits_of(const std::vector<double>& p, double shift = 0) {
  return torch::tensor(p, torch::kFloat64).log() + shift;
}

const std::vector<double> kP = {0.5, 0.25, 0.125, 0.0625, 0.0625}, kQ = {0.125, 0.25, 0.5, 0.0625, 0.0625};
const double kLn2 = std::log(2.0);

}  // namespace

// All of these are sums of a few terms of size one in float64: equal to 1e-14.

TEST_CASE("log-odds of sets are the log of the quotient of their probabilities", "[graph]") {
  // (1/2 + 1/16) / (1/8 + 1/16) = 3
  for (const double shift : {0.0, -700.0, 700.0})
    REQUIRE(ops::set_log_odds(logits_of(kP, shift), {0, 3}, {2, 4}).item<double>() ==
            Approx(std::log(3.0)).margin(1e-12));  // a logit of 700 has steps of 1e-13
  const auto batch = at::stack({logits_of(kP), logits_of(kQ)}).view({1, 2, 5});
  const auto odds = ops::set_log_odds(batch, {0}, {2});
  REQUIRE(at::allclose(odds, torch::tensor({2 * kLn2, -2 * kLn2}, torch::kFloat64).view({1, 2}), 0, 1e-14));
}

TEST_CASE("log-odds of bfloat16 logits are computed in float64", "[graph]") {
  // 17.5, 16.25 and 16 are bfloat16 numbers; log(e^1.5 + e^0.25) lies between two of them.
  const auto logits = torch::tensor({17.5, 16.25, 16.0}).to(torch::kBFloat16);
  const auto odds = ops::set_log_odds(logits, {0, 1}, {2});
  REQUIRE(odds.scalar_type() == torch::kFloat64);
  REQUIRE(odds.item<double>() == Approx(std::log(std::exp(1.5) + std::exp(0.25))).margin(1e-14));
}

TEST_CASE("sets of log-odds are of tokens that are there", "[graph]") {
  REQUIRE_THROWS_AS(ops::set_log_odds(logits_of(kP), {}, {1}), std::invalid_argument);
  REQUIRE_THROWS_AS(ops::set_log_odds(logits_of(kP), {1}, {}), std::invalid_argument);
  REQUIRE_THROWS_AS(ops::set_log_odds(logits_of(kP), {1}, {-1}), std::out_of_range);
  REQUIRE_THROWS_WITH(ops::set_log_odds(logits_of(kP), {5}, {1}), Catch::Matchers::Contains("0 to 4, got 5"));
}

TEST_CASE("entropy is in nats, of each distribution", "[graph]") {
  // 1/2 * 1 + 1/4 * 2 + 1/8 * 3 + 2 * 1/16 * 4 = 1.875 bits
  const auto both = ops::entropy(at::stack({logits_of(kP, 3), at::zeros({5}, torch::kFloat64)}));
  REQUIRE(at::allclose(both, torch::tensor({1.875 * kLn2, std::log(5.0)}, torch::kFloat64), 0, 1e-14));
  REQUIRE(ops::entropy(logits_of({0.5, 0.0, 0.5})).item<double>() ==
          Approx(kLn2).margin(1e-14));  // 0 log 0 is 0
}

TEST_CASE("KL is from the distribution to its base, and not the way back", "[graph]") {
  // 1/2 log 4 - 1/8 log 4, of the first and third; that is the same both ways, what follows is not.
  REQUIRE(ops::kl_divergence(logits_of(kP, 1), logits_of(kQ, -2)).item<double>() ==
          Approx(0.375 * 2 * kLn2).margin(1e-14));
  const auto half = logits_of({0.5, 0.5}), most = logits_of({0.75, 0.25});
  REQUIRE(ops::kl_divergence(most, half).item<double>() ==
          Approx(0.75 * std::log(1.5) + 0.25 * std::log(0.5)).margin(1e-14));
  REQUIRE(ops::kl_divergence(half, most).item<double>() ==
          Approx(0.5 * std::log(1 / 1.5) + 0.5 * std::log(2.0)).margin(1e-14));
  REQUIRE(ops::kl_divergence(most, most).item<double>() == 0);
  const auto certain = logits_of({1.0, 0.0});
  REQUIRE(ops::kl_divergence(certain, half).item<double>() == Approx(kLn2).margin(1e-14));
  REQUIRE(std::isinf(ops::kl_divergence(half, certain).item<double>()));
  REQUIRE(ops::kl_divergence(at::stack({half, most}), at::stack({most, half})).sizes() == at::IntArrayRef{2});
  REQUIRE_THROWS_AS(ops::kl_divergence(half, logits_of(kP)), ShapeError);
}

TEST_CASE("what changed most is by log-probability, not by logit", "[graph]") {
  // Log-probabilities rise by log 4, 0, -log 4, 0, 0, whatever is added to all logits.
  const auto [up, up_ids] = ops::most_changed(logits_of(kP, 5), logits_of(kQ, -5), 1, /*raised=*/true);
  REQUIRE(up_ids.item<int64_t>() == 0);
  REQUIRE(up.item<double>() == Approx(2 * kLn2).margin(1e-14));
  const auto [down, down_ids] = ops::most_changed(logits_of(kP), logits_of(kQ), 9, /*raised=*/false);
  REQUIRE(down_ids.size(0) == 5);  // no more than there are
  REQUIRE(down_ids[0].item<int64_t>() == 2);
  REQUIRE(down_ids[4].item<int64_t>() == 0);
  REQUIRE(at::allclose(down, torch::tensor({-2 * kLn2, 0.0, 0.0, 0.0, 2 * kLn2}, torch::kFloat64), 0, 1e-14));
  REQUIRE_THROWS_AS(ops::most_changed(logits_of(kP), logits_of({1.0}), 1, true), ShapeError);
}

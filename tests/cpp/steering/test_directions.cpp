#include <limits>
#include <stdexcept>

#include <torch/types.h>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/steering/diagnostics.h"
#include "introspect/steering/directions.h"

using namespace introspect;
using steering::Method;

namespace {

/// Pairs that share what they have in common and differ along a known direction, by more in some than in others.
struct Planted {
  torch::Tensor positive, negative, direction;
};

Planted planted_pairs(int64_t n, int64_t d, uint64_t seed, double shared = 0.5) {
  at::manual_seed(seed);
  auto direction = torch::randn({d}, torch::kFloat64);
  direction = direction / direction.norm();
  const auto common = shared * torch::randn({n, d}, torch::kFloat64);
  const auto size = 4 + 8 * torch::rand({n, 1}, torch::kFloat64);
  const auto noise = [&] { return 0.05 * torch::randn({n, d}, torch::kFloat64); };
  return {common + size * direction + noise(), common + noise(), direction};
}

double cosine(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kFloat64).dot(b) / (a.to(torch::kFloat64).norm() * b.norm())).item<double>();
}

}  // namespace

TEST_CASE("every method finds a planted direction, pointing from negative to positive",
          "[steering][directions]") {
  const std::string name = GENERATE("pca_center", "pca_global_center", "pca_diff", "pca_diff_uncentered",
                                    "lat", "mean_diff", "logistic");
  const auto [n, d] = GENERATE(std::pair{120, 40}, std::pair{60, 200});
  const auto method = steering::parse_method(name);
  CHECK(steering::to_string(method) == name);
  const auto of = planted_pairs(n, d, 7);
  INFO(name);
  std::vector<double> shares;
  const auto direction = steering::direction_of_pairs(of.positive, of.negative, method, &shares, 3);
  CHECK(direction.scalar_type() == torch::kFloat32);
  CHECK(cosine(direction, of.direction) > 0.95);
  CHECK(cosine(steering::direction_of_pairs(of.negative, of.positive, method, nullptr, 3), of.direction) <
        -0.95);
  const bool components = name != "mean_diff" && name != "logistic";
  CHECK(shares.size() == (components ? 8 : 0));
  if (name != "mean_diff") CHECK(direction.norm().item<double>() == Approx(1.0));
  CHECK(direction.equal(steering::direction_of_pairs(of.positive, of.negative, method, nullptr, 3)));
}

TEST_CASE("a mean difference has its own length", "[steering][directions]") {
  const auto of = planted_pairs(100, 32, 8);
  const auto expected = (of.positive - of.negative).mean(0);
  const auto direction = steering::direction_of_pairs(of.positive, of.negative, Method::mean_diff);
  CHECK((direction - expected).abs().max().item<double>() < 1e-6);
}

TEST_CASE("held-out figures are perfect for planted pairs and chance for noise", "[steering][directions]") {
  const auto folds = GENERATE(2, 5);
  const auto of = planted_pairs(200, 32, 9);
  const auto good = steering::diagnose(of.positive, of.negative, of.direction, Method::pca_center, folds);
  CHECK(good.sign_agreement == 1.0);
  CHECK(good.explained_variance > 0.99);
  CHECK(good.accuracy.value() >
        0.9);  // differences of 4 to 12: a few small ones are below the means' middle, 4
  CHECK(good.auc.value() > 0.99);
  const auto a = torch::randn({400, 32}, torch::kFloat64), b = torch::randn({400, 32}, torch::kFloat64);
  const auto found = steering::direction_of_pairs(a, b, Method::mean_diff);
  const auto chance = steering::diagnose(a, b, found, Method::mean_diff, folds);
  CHECK(chance.sign_agreement > 0.52);                    // the pairs it was made from
  CHECK(chance.auc.value() == Approx(0.5).margin(0.08));  // three standard errors of 400 against 400
  CHECK(chance.accuracy.value() == Approx(0.5).margin(0.08));
}

TEST_CASE("figures of held-out pairs need pairs to hold out", "[steering][directions]") {
  const auto of = planted_pairs(3, 8, 10);
  const auto judged = [&](int64_t folds) {
    return steering::diagnose(of.positive, of.negative, of.direction, Method::pca_center, folds);
  };
  CHECK_FALSE(judged(0).auc);
  CHECK_FALSE(judged(2).auc);
  CHECK(judged(2).sign_agreement == 1.0);
  CHECK_THROWS_AS(judged(1), std::invalid_argument);
  CHECK_THROWS_AS(judged(-1), std::invalid_argument);
}

TEST_CASE("pairs without a difference have no direction", "[steering][directions]") {
  const auto method = GENERATE(Method::pca_center, Method::pca_diff, Method::mean_diff, Method::logistic,
                               Method::lat, Method::pca_global_center);
  const auto same = torch::ones({4, 3});
  CHECK_THROWS_AS(steering::direction_of_pairs(same, same, method), std::invalid_argument);
  CHECK_THROWS_AS(steering::direction_of_pairs(same, torch::ones({4, 2}), method), ShapeError);
  CHECK_THROWS_AS(steering::direction_of_pairs(same, torch::zeros({3, 3}), method), ShapeError);
  auto broken = torch::zeros({4, 3});
  broken[2][1] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(steering::direction_of_pairs(same, broken, method), Catch::Contains("finite"));
  CHECK_THROWS_WITH(steering::parse_method("umap"), Catch::Contains("pca_center"));
}

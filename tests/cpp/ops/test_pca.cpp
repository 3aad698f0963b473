#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include <torch/types.h>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/ops/pca.h"

using introspect::ops::leading_component;
using introspect::ops::principal_components;

namespace {

torch::Tensor normal(std::vector<int64_t> sizes, uint64_t seed) {
  at::manual_seed(seed);
  return torch::randn(sizes, torch::kFloat64);
}

double max_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

}  // namespace

TEST_CASE("principal_components equals the singular vectors of the centred rows", "[ops][pca]") {
  const auto [n, d] = GENERATE(std::pair{40, 7}, std::pair{7, 40}, std::pair{12, 12});
  const auto x = normal({n, d}, 1) + 3.0;
  const auto [u, s, v] = torch::linalg_svd(x - x.mean(0), /*full_matrices=*/false);
  const auto pca = principal_components(x, 3, /*center=*/true);
  const auto cosines = (pca.components_KD * v.narrow(0, 0, 3)).sum(1).abs();
  CHECK(max_difference(cosines, torch::ones({3}, torch::kFloat64)) < 1e-10);
  CHECK(max_difference(pca.components_KD.mm(pca.components_KD.t()), torch::eye(3, torch::kFloat64)) < 1e-10);
  CHECK(pca.variance_share.size(0) == std::min(n, d));
  CHECK(max_difference(pca.variance_share, s.square() / s.square().sum()) < 1e-10);
}

TEST_CASE("centred PCA of +-h is uncentred PCA of the halves h", "[ops][pca]") {
  const auto halves = normal({20, 30}, 2) + 0.5;
  const auto both = principal_components(torch::cat({halves, -halves}), 1, true);
  const auto half = principal_components(halves, 1, false);
  CHECK((both.components_KD * half.components_KD).sum().abs().item<double>() == Approx(1.0).epsilon(1e-10));
  CHECK(both.variance_share[0].item<double>() ==
        Approx(half.variance_share[0].item<double>()).epsilon(1e-10));
}

TEST_CASE("a planted direction is found, and found again bit for bit", "[ops][pca]") {
  auto direction = normal({64}, 3);
  direction = direction / direction.norm();
  const auto x = 5.0 * normal({50, 1}, 4) * direction + 0.01 * normal({50, 64}, 5);
  const auto first = principal_components(x.to(torch::kFloat32), 1, false);
  CHECK(std::abs(first.components_KD[0].dot(direction).item<double>()) > 0.9999);
  CHECK(first.components_KD.equal(principal_components(x.to(torch::kFloat32), 1, false).components_KD));
}

TEST_CASE("principal_components refuses what has no direction", "[ops][pca]") {
  CHECK_THROWS_AS(principal_components(torch::zeros({4}), 1, true), introspect::ShapeError);
  CHECK_THROWS_AS(principal_components(torch::zeros({4, 3}), 1, true), std::invalid_argument);
  CHECK_THROWS_AS(principal_components(torch::ones({4, 3}), 1, true), std::invalid_argument);  // no spread
  CHECK_THROWS_AS(principal_components(normal({4, 3}, 6), 4, true), std::invalid_argument);
  auto x = normal({4, 3}, 7);
  x[1][2] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(principal_components(x, 1, true), std::invalid_argument);
}

TEST_CASE("leading_component equals the first singular vector and the shares", "[ops][pca]") {
  const auto [n, d] = GENERATE(std::pair{40, 7}, std::pair{90, 200}, std::pair{200, 90}, std::pair{120, 120});
  const bool center = GENERATE(true, false);
  const double decay = GENERATE(0.0, 0.5, 2.0);  // of the spectrum's roots: flat to steep
  const auto x = normal({n, d}, 11) * torch::arange(1, d + 1, torch::kFloat64).pow(-decay) + 0.1;
  const auto [u, s, v] = torch::linalg_svd(center ? x - x.mean(0) : x, /*full_matrices=*/false);
  const auto found = leading_component(x, center);
  // The sine of the angle: a cosine would not show 1e-8.
  const auto cosine = found.component_D.dot(v[0]);
  CHECK((found.component_D - cosine * v[0]).norm().item<double>() < 1e-9);
  CHECK(found.component_D.norm().item<double>() == Approx(1.0).epsilon(1e-12));
  const auto shares = s.square() / s.square().sum();
  REQUIRE(found.variance_share.size(0) == std::min<int64_t>({8, n, d}));
  CHECK(max_difference(found.variance_share, shares.narrow(0, 0, found.variance_share.size(0))) < 1e-7);
  CHECK(found.component_D.equal(leading_component(x, center).component_D));
}

TEST_CASE("leading_component of spectra with no gap or few directions", "[ops][pca]") {
  const auto [q, r] = torch::linalg_qr(normal({100, 100}, 12));
  SECTION("two values apart by 1e-9 of themselves: one of the plane they span") {
    auto values = torch::arange(1, 101, torch::kFloat64).pow(-1.0);
    values[1] = values[0] * (1 - 1e-9);
    const auto found = leading_component(values.unsqueeze(1) * q.t(), false);
    CHECK(q.t().narrow(0, 0, 2).mv(found.component_D).norm().item<double>() == Approx(1.0).epsilon(1e-9));
    CHECK(found.variance_share[0].item<double>() == Approx(found.variance_share[1].item<double>()));
  }
  SECTION("a gap of 1e-4 is resolved") {
    auto values = torch::arange(1, 101, torch::kFloat64).pow(-1.0);
    values[1] = values[0] * (1 - 1e-4);
    const auto found = leading_component(values.unsqueeze(1) * q.t(), false);
    CHECK(std::abs(found.component_D.dot(q.select(1, 0)).item<double>()) == Approx(1.0).epsilon(1e-12));
  }
  SECTION("rank one") {
    const auto found = leading_component(normal({80, 1}, 13) * q.select(1, 3), false);
    CHECK(std::abs(found.component_D.dot(q.select(1, 3)).item<double>()) == Approx(1.0).epsilon(1e-12));
    CHECK(found.variance_share[0].item<double>() == Approx(1.0).epsilon(1e-12));
    CHECK(found.variance_share[1].item<double>() < 1e-12);
  }
  SECTION("rank three, fewer than the shares asked for") {
    const auto x = normal({80, 3}, 14).mm(q.narrow(1, 0, 3).t());
    const auto [u, s, v] = torch::linalg_svd(x, false);
    const auto found = leading_component(x, false);
    CHECK(std::abs(found.component_D.dot(v[0]).item<double>()) == Approx(1.0).epsilon(1e-12));
    CHECK(found.variance_share.narrow(0, 0, 3).sum().item<double>() == Approx(1.0).epsilon(1e-12));
  }
}

TEST_CASE("leading_component refuses what has no direction", "[ops][pca]") {
  CHECK_THROWS_AS(leading_component(torch::zeros({4}), true), introspect::ShapeError);
  CHECK_THROWS_AS(leading_component(torch::zeros({60, 50}), false), std::invalid_argument);
  CHECK_THROWS_AS(leading_component(torch::full({60, 50}, 0.1), true), std::invalid_argument);
  CHECK_THROWS_AS(leading_component(normal({4, 3}, 15), true, 0), std::invalid_argument);
  auto x = normal({60, 50}, 16);
  x[1][2] = std::numeric_limits<double>::infinity();
  CHECK_THROWS_AS(leading_component(x, true), std::invalid_argument);
}

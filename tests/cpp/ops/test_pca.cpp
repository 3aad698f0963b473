#include <limits>
#include <stdexcept>

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/ops/pca.h"

using introspect::ops::principal_components;

namespace {

torch::Tensor normal(std::vector<int64_t> sizes, uint64_t seed) {
  torch::manual_seed(seed);
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

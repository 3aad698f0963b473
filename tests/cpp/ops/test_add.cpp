#include "introspect/ops/add.h"

#include <limits>

#include <catch2/catch.hpp>

using namespace introspect;

// Sizes that fill registers and that do not, one that several threads share.
TEST_CASE("a sum of bfloat16 has ATen's bits", "[ops]") {
  const auto n = GENERATE(0, 1, 15, 16, 100, 70001);
  at::manual_seed(0);
  auto a = at::randn({n}).to(torch::kBFloat16), b = (at::randn({n}) * 8).to(torch::kBFloat16);
  if (n > 3) {
    a[1] = std::numeric_limits<float>::infinity(), b[2] = std::numeric_limits<float>::quiet_NaN();
    a[3] = 3e38f, b[3] = 3e38f;
  }
  const auto ours = ops::add(a, b), theirs = a + b;
  REQUIRE(at::equal(ours.isnan(), theirs.isnan()));
  REQUIRE(at::equal(ours.nan_to_num(0), theirs.nan_to_num(0)));
}

TEST_CASE("other sums are ATen's", "[ops]") {
  at::manual_seed(0);
  const auto a = at::randn({3, 40}), b = at::randn({3, 40}), half = a.to(torch::kBFloat16);
  REQUIRE(at::equal(ops::add(a, b), a + b));
  REQUIRE(at::equal(ops::add(half, b), half + b));
  REQUIRE(at::equal(ops::add(half, half.narrow(0, 0, 1)), half + half.narrow(0, 0, 1)));
  const auto apart = at::cat({half, half}, 1).narrow(1, 0, 40);
  REQUIRE(at::equal(ops::add(apart, half), half + half));
  const auto trained = half.clone().requires_grad_();
  REQUIRE(ops::add(trained, half).requires_grad());
}

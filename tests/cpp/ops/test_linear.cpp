#include "introspect/ops/linear.h"

#include <catch2/catch.hpp>

#include "introspect/core/error.h"

using namespace introspect;

// Odd widths exercise the parts of a row that fill no vector; 1 to 4 rows have a kernel each; more take
// tiles of 1, 2 or 4 panels of 16 rows, in sweeps of 512.
TEST_CASE("linear equals the product in double precision", "[ops]") {
  const auto rows = GENERATE(1, 2, 3, 4, 5, 16, 33, 70, 600);
  const auto width = GENERATE(1, 7, 16, 63, 64, 100, 576);
  const auto outputs = GENERATE(1, 33);
  at::manual_seed(0);
  const auto x = at::randn({1, rows, width}), w = at::randn({outputs, width}), b = at::randn({outputs});
  const auto exact = at::linear(x.to(torch::kFloat64), w.to(torch::kFloat64), b.to(torch::kFloat64));
  // float32 sums of `width` products of order one
  REQUIRE(at::allclose(ops::linear(x, w, b).to(torch::kFloat64), exact, 0, 1e-6 * (width + 10)));

  const auto xh = x.to(torch::kBFloat16), wh = w.to(torch::kBFloat16), bh = b.to(torch::kBFloat16);
  const auto exact_h = at::linear(xh.to(torch::kFloat64), wh.to(torch::kFloat64), bh.to(torch::kFloat64));
  // one rounding to 8 bits of the result, and the float32 sum before it
  const auto bound = exact_h.abs() / 256 + 1e-6 * (width + 10);
  REQUIRE(((ops::linear(xh, wh, bh).to(torch::kFloat64) - exact_h).abs() <= bound).all().item<bool>());

  const auto exact_32 = at::linear(x[0].to(torch::kFloat64), wh.to(torch::kFloat64));
  REQUIRE(at::allclose(ops::linear_fp32(x[0], wh).to(torch::kFloat64), exact_32, 0, 1e-6 * (width + 10)));
}

TEST_CASE("linear_fp32 widens a large bfloat16 weight block by block", "[ops]") {
  at::manual_seed(0);
  const auto x = at::randn({6, 8}), w = at::randn({20000, 8}).to(torch::kBFloat16);
  const auto exact = at::linear(x.to(torch::kFloat64), w.to(torch::kFloat64));
  REQUIRE(at::allclose(ops::linear_fp32(x, w).to(torch::kFloat64), exact, 0, 2e-5));
  REQUIRE_THROWS_AS(ops::linear_fp32(x, w.narrow(1, 0, 7)), ShapeError);
}

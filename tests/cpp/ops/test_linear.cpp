#include "introspect/ops/linear.h"

#include <ATen/Parallel.h>
#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/ops/bfloat16_products.h"
#include "ops/bfloat16_way.h"

using namespace introspect;

namespace {

std::vector<std::string> ways_with_equal_rows() {
  auto ways = ops::bfloat16_products_here();
  ways.pop_back();  // "widened": up to four rows have a kernel of their own
  return ways;
}

torch::Tensor random_bfloat16(at::IntArrayRef sizes) {
  return at::randn(sizes).to(torch::kBFloat16);
}

}  // namespace

// Odd widths exercise the parts of a row that fill no vector, 2,100 several parts of the sum; 1 to 4 rows have a kernel
// each; more take tiles of 1, 2 or 4 panels of 16 rows, in sweeps of 512.
TEST_CASE("linear equals the product in double precision", "[ops]") {
  const auto rows = GENERATE(1, 2, 3, 4, 5, 16, 33, 70, 600);
  const auto width = GENERATE(1, 7, 16, 63, 64, 100, 576, 2100);
  const auto outputs = GENERATE(1, 33, 101);
  at::manual_seed(0);
  const auto x = at::randn({1, rows, width}), w = at::randn({outputs, width}), b = at::randn({outputs});
  const auto exact = at::linear(x.to(torch::kFloat64), w.to(torch::kFloat64), b.to(torch::kFloat64));
  // float32 sums of `width` products of order one
  REQUIRE(at::allclose(ops::linear(x, w, b).to(torch::kFloat64), exact, 0, 1e-6 * (width + 10)));

  const Way way(GENERATE(from_range(ops::bfloat16_products_here())));
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

TEST_CASE("a row of bfloat16 has the same product alone as among others", "[ops]") {
  const auto ways = ways_with_equal_rows();
  if (ways.empty()) return;  // this processor has no product of bfloat16
  const Way way(GENERATE_COPY(from_range(ways)));
  // Whole tiles and not, of one part and of several (more than 12 steps of 32), weights on cache lines and off them.
  const auto [width, outputs] =
      GENERATE(table<int64_t, int64_t>({{1, 1}, {7, 33}, {64, 32}, {576, 96}, {577, 31}, {840, 40}}));
  at::manual_seed(0);
  const auto x = random_bfloat16({70, width}), b = random_bfloat16({outputs});
  const auto w =
      GENERATE(0, 1)
          ? random_bfloat16({outputs, width})
          : random_bfloat16({outputs * width + 3}).narrow(0, 3, outputs * width).view({outputs, width});
  std::vector<torch::Tensor> alone;
  for (int64_t m = 0; m < 70; ++m) alone.push_back(ops::linear(x.narrow(0, m, 1), w, b));
  const auto rows = at::cat(alone);
  for (int64_t m = 1; m <= 70; ++m)
    REQUIRE(at::equal(ops::linear(x.narrow(0, 0, m), w, b), rows.narrow(0, 0, m)));
  // Two sweeps over the weights, whose threads take blocks of them (5) or rows of x (2).
  const int threads = at::get_num_threads();
  for (const int n : {1, 2, 5}) {
    at::set_num_threads(n);
    REQUIRE(at::equal(ops::linear(x.repeat({9, 1}), w, b), rows.repeat({9, 1})));
  }
  at::set_num_threads(threads);
  // as a batch, and where x's rows are not side by side
  REQUIRE(at::equal(ops::linear(x.view({7, 10, width}), w, b), rows.view({7, 10, outputs})));
  const auto apart = at::cat({x, x}, 1).narrow(1, 0, width);
  REQUIRE(at::equal(ops::linear(apart, w, b), rows));
}

TEST_CASE("products of bfloat16 give what is not finite where float32 does, and nothing for no rows",
          "[ops]") {
  const auto ways =
      ways_with_equal_rows();  // oneDNN's, which "widened" may use, lets infinity reach the row before it
  if (ways.empty()) return;
  const Way way(GENERATE_COPY(from_range(ways)));
  at::manual_seed(0);
  auto x = random_bfloat16({40, 70}), w = random_bfloat16({50, 70});
  x[3][69] = std::numeric_limits<float>::quiet_NaN();
  x[17][0] = std::numeric_limits<float>::infinity();
  w[49][5] = -std::numeric_limits<float>::infinity();
  w[20][33] = std::numeric_limits<float>::quiet_NaN();
  const auto y = ops::linear(x, w, {}), exact = at::linear(x.to(torch::kFloat32), w.to(torch::kFloat32));
  REQUIRE(at::equal(y.isnan(), exact.isnan()));
  REQUIRE(at::equal(y.isinf(), exact.isinf()));
  const auto large = at::full_like(x, 3e38);  // finite, and its products are not
  REQUIRE(ops::linear(large, large, {}).isinf().all().item<bool>());
  REQUIRE(ops::linear(x.narrow(0, 0, 0), w, {}).sizes() == at::IntArrayRef({0, 50}));
  REQUIRE(ops::linear(x, w.narrow(0, 0, 0), {}).sizes() == at::IntArrayRef({40, 0}));
  REQUIRE(at::equal(ops::linear(x.narrow(1, 0, 0), w.narrow(1, 0, 0), {}), at::zeros({40, 50}, x.options())));
}

TEST_CASE("the instructions for bfloat16 take numbers below 2^-126 for zero", "[ops]") {
  const auto ways = ways_with_equal_rows();
  if (ways.empty()) return;
  const Way way(GENERATE_COPY(from_range(ways)));
  const auto options = torch::TensorOptions(torch::kBFloat16);
  const auto one = at::ones({1, 1}, options), small = at::full({1, 1}, 0x1p-130, options);
  REQUIRE(small.item<double>() == 0x1p-130);
  REQUIRE(ops::linear(one, small, {}).item<double>() == 0);
  REQUIRE(ops::linear(one * 0x1p20, at::full({1, 1}, 0x1p-126, options), {}).item<double>() == 0x1p-106);
}

TEST_CASE("a way of multiplying bfloat16 that is not there is refused", "[ops]") {
  REQUIRE_THROWS_WITH(ops::use_bfloat16_products("fast"), Catch::Contains("widened; got 'fast'"));
  REQUIRE_THROWS_AS(ops::use_bfloat16_products(""), ConfigError);
}

TEST_CASE("shapes that linear does not have are refused before a number is read", "[ops]") {
  const auto dtype = GENERATE(torch::kFloat32, torch::kBFloat16);
  const auto w = at::zeros({4, 64}, dtype);
  for (const int64_t rows : {1, 9, 300}) {
    const auto x = at::zeros({rows, 64}, dtype);
    for (const auto& bias : {at::ones({1}), at::ones({}), at::ones({3}), at::ones({5}), at::ones({1, 4})})
      REQUIRE_THROWS_AS(ops::linear(x, w, bias.to(dtype)), ShapeError);
    REQUIRE_THROWS_AS(ops::linear(x.narrow(1, 0, 63), w, {}), ShapeError);
  }
  REQUIRE_THROWS_AS(ops::linear(at::ones({}, dtype), w, {}), ShapeError);
  REQUIRE(ops::linear(at::ones({64}, dtype), w, at::ones({4}, dtype)).sizes() == at::IntArrayRef({4}));
}

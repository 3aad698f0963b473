#include "introspect/ops/rotary.h"

#include <catch2/catch.hpp>

#include "introspect/core/error.h"

using namespace introspect;

namespace {

/// By ATen's operations, each of which rounds: transformers' order.
torch::Tensor step_by_step(const torch::Tensor& x_BTHK, const torch::Tensor& cos_BTK2,
                           const torch::Tensor& sin_BTK2) {
  const int64_t half = cos_BTK2.size(-1);
  const auto cos = cos_BTK2.unsqueeze(2), sin = sin_BTK2.unsqueeze(2);
  const auto a = x_BTHK.narrow(3, 0, half), b = x_BTHK.narrow(3, half, half);
  return at::cat(
      {a * cos - b * sin, b * cos + a * sin, x_BTHK.narrow(3, 2 * half, x_BTHK.size(3) - 2 * half)}, 3);
}

}  // namespace

// Heads of a product of queries, keys and values, whose rows hold more than these; halves that fill registers and that do
// not, whole heads and parts of them, one position and many, angles that rows share and that they do not.
TEST_CASE("rotations are those of ATen's operations", "[ops]") {
  const auto dtype = GENERATE(torch::kFloat32, torch::kBFloat16);
  const auto [K, half] = GENERATE(table<int64_t, int64_t>({{64, 32}, {64, 16}, {20, 10}, {40, 3}}));
  const auto [B, T, of_angles] =
      GENERATE(table<int64_t, int64_t, int64_t>({{1, 1, 1}, {3, 5, 1}, {3, 5, 3}, {2, 400, 1}}));
  at::manual_seed(0);
  const auto x = at::randn({B, T, 9, K}).to(dtype).narrow(2, 2, 5);
  const auto angles = at::randn({of_angles, T, half});
  const auto cos = angles.cos().to(dtype), sin = angles.sin().to(dtype);
  const auto ours = ops::apply_rotary(x, cos, sin), theirs = step_by_step(x, cos, sin);
  if (dtype == torch::kBFloat16)  // each product is rounded on its own
    REQUIRE(at::equal(ours, theirs));
  else  // one is added before it is rounded
    REQUIRE(at::allclose(ours, theirs, 0, 1e-6));
}

TEST_CASE("angles of other rows, positions or halves are refused", "[ops]") {
  const auto x = at::zeros({3, 5, 2, 8}), cos = at::zeros({3, 5, 4});
  REQUIRE_THROWS_AS(ops::apply_rotary(x, cos.narrow(0, 0, 2), cos.narrow(0, 0, 2)), ShapeError);
  REQUIRE_THROWS_AS(ops::apply_rotary(x, cos, cos.narrow(0, 0, 1)), ShapeError);
  REQUIRE_THROWS_AS(ops::apply_rotary(x, cos.narrow(1, 0, 4), cos.narrow(1, 0, 4)), ShapeError);
  REQUIRE_THROWS_AS(ops::apply_rotary(x, at::zeros({3, 5, 5}), at::zeros({3, 5, 5})), ShapeError);
  REQUIRE_THROWS_AS(ops::apply_rotary(x[0], cos, cos), ShapeError);
}

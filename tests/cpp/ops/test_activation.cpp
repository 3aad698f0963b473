#include "introspect/ops/activation.h"

#include <limits>

#include <catch2/catch.hpp>

using namespace introspect;

// Halves of one matrix, as an MLP has them; widths that fill registers and that do not.
TEST_CASE("the gated silu of bfloat16 rounds as ATen's two operations do", "[ops]") {
  const auto M = GENERATE(1, 15, 16, 40, 100);
  at::manual_seed(0);
  const auto hidden = (at::randn({3, 50, 2 * M}) * 8).to(torch::kBFloat16);
  const auto gate = hidden.narrow(2, 0, M), x = hidden.narrow(2, M, M);
  const auto ours = ops::gated(ops::Activation::kSilu, gate, x), theirs = at::silu(gate) * x;
  // Both take e^x in float32 to about two units in the last place: where that is at a tie, bfloat16 rounds either way,
  // once for silu and once for the product.
  const auto bound = theirs.to(torch::kFloat64).abs() / 64;
  REQUIRE(((ours.to(torch::kFloat64) - theirs.to(torch::kFloat64)).abs() <= bound).all().item<bool>());
  REQUIRE((ours != theirs).sum().item<int64_t>() <= 1 + ours.numel() / 1000);
  REQUIRE(at::equal(ops::gated(ops::Activation::kSilu, gate.contiguous(), x.contiguous()), ours));
}

TEST_CASE("the gated silu of bfloat16 at its ends", "[ops]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto gate = torch::tensor({inf, -inf, nan, 100.0f, -100.0f, -88.0f, 0.0f, -0.0f, 3e38f, -3e38f});
  const auto half = gate.to(torch::kBFloat16), one = at::ones_like(half);
  const auto ours = ops::gated(ops::Activation::kSilu, half, one), theirs = at::silu(half);
  REQUIRE(at::equal(ours.isnan(), theirs.isnan()));
  // -88 and below: what ATen gives is below 1e-36
  REQUIRE(at::allclose(ours, theirs, 0, 1e-36, /*equal_nan=*/true));
}

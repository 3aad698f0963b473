#include "introspect/ops/activation.h"

#include <limits>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/ops/bfloat16_products.h"
#include "introspect/ops/gated_mlp.h"
#include "introspect/ops/linear.h"
#include "ops/bfloat16_way.h"

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

// Panels that are whole and not, parts of a row, rows that go over the weights in one sweep and in two.
TEST_CASE("an MLP of bfloat16 in one step has the bits of its three steps", "[ops]") {
  auto ways = ops::bfloat16_products_here();
  ways.pop_back();  // "widened" has no such step
  if (ways.empty()) return;
  const Way way(GENERATE_COPY(from_range(ways)));
  const auto [rows, D, M] = GENERATE(
      table<int64_t, int64_t, int64_t>({{16, 64, 32}, {17, 70, 96}, {40, 576, 64}, {600, 96, 1568}}));
  const bool has_bias = GENERATE(false, true);
  at::manual_seed(0);
  const auto random = [](at::IntArrayRef sizes) { return at::randn(sizes).to(torch::kBFloat16); };
  auto x = random({rows, D});
  const auto W_in = random({2 * M, D}), W_out = random({D, M});
  const auto b_in = has_bias ? random({2 * M}) : torch::Tensor(),
             b_out = has_bias ? random({D}) : torch::Tensor();
  x[3][1] = std::numeric_limits<float>::infinity();
  x[5][0] = std::numeric_limits<float>::quiet_NaN();
  const auto steps = [&](const torch::Tensor& in) {
    const auto hidden = ops::linear(in, W_in, b_in);
    return ops::linear(ops::gated(ops::Activation::kSilu, hidden.narrow(1, 0, M), hidden.narrow(1, M, M)),
                       W_out, b_out);
  };
  REQUIRE(ops::has_gated_mlp(x, W_in, b_in, W_out, b_out));
  const auto one = ops::gated_mlp(x, W_in, b_in, W_out, b_out);
  const auto bits = [](const torch::Tensor& t) { return t.contiguous().view(torch::kShort); };
  REQUIRE(at::equal(bits(one), bits(steps(x))));
  REQUIRE(at::equal(bits(one.narrow(0, 7, 1)), bits(steps(x.narrow(0, 7, 1)))));  // alone as among others
  REQUIRE(at::equal(bits(ops::gated_mlp(x.view({1, rows, D}), W_in, b_in, W_out, b_out)[0]), bits(one)));
}

TEST_CASE("an MLP has no one step in float32, for few rows, for gradients or other shapes", "[ops]") {
  const auto zeros = [](at::IntArrayRef sizes) { return at::zeros(sizes, torch::kBFloat16); };
  const auto x = zeros({32, 64}), W_in = zeros({64, 64}), W_out = zeros({64, 32});
  const auto has = [](const torch::Tensor& in, const torch::Tensor& W, const torch::Tensor& out) {
    return ops::has_gated_mlp(in, W, {}, out, {});
  };
  REQUIRE_FALSE(has(x.to(torch::kFloat32), W_in, W_out));
  REQUIRE_FALSE(has(x.narrow(0, 0, 15), W_in, W_out));
  REQUIRE_FALSE(has(x, W_in.narrow(0, 0, 32), W_out));
  REQUIRE_FALSE(has(x, zeros({80, 64}), zeros({64, 40})));
  REQUIRE_FALSE(has(x, W_in, zeros({32, 64}).t()));
  REQUIRE_FALSE(has(x.clone().requires_grad_(), W_in, W_out));
  REQUIRE_FALSE(ops::has_gated_mlp(x, W_in, zeros({64}).requires_grad_(), W_out, {}));
  REQUIRE_FALSE(ops::has_gated_mlp(x, W_in, {}, W_out, zeros({64}).requires_grad_()));
  REQUIRE_THROWS_AS(ops::gated_mlp(x.narrow(0, 0, 15), W_in, {}, W_out, {}), ShapeError);
  if (!has(x, W_in, W_out)) return;
  REQUIRE_THROWS_WITH(ops::gated_mlp(x, W_in, zeros({1}), W_out, {}), Catch::Contains("biases must be"));
  REQUIRE_THROWS_WITH(ops::gated_mlp(x, W_in, {}, W_out, zeros({63})), Catch::Contains("biases must be"));
}

#include "introspect/nn/linear.h"

#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/nn/parts.h"
#include "tiny_model.h"

using namespace introspect;
using nn::Linear;
using testing::distance;
using testing::kFloor;
using testing::random_tensor;

namespace {

const auto kW = random_tensor({7, 5}, 1), kB = random_tensor({7}, 2), kX = random_tensor({2, 3, 5}, 3);
const nn::LowRank kTop{random_tensor({2, 5}, 4), random_tensor({4, 2}, 5), 0.5, 0};      // rows 0 to 3
const nn::LowRank kBottom{random_tensor({1, 5}, 6), random_tensor({3, 1}, 7), -2.0, 3};  // rows 3 to 5

/// The weight that the two additions and kW make together, written out.
torch::Tensor merged() {
  auto W = kW.clone();
  W.slice(0, 0, 4) += 0.5 * at::matmul(kTop.B, kTop.A);
  W.slice(0, 3, 6) -= 2.0 * at::matmul(kBottom.B, kBottom.A);
  return W;
}

}  // namespace

TEST_CASE("a Linear with additions of low rank is that of the merged weight", "[nn]") {
  const auto linear = Linear(kW, kB).plus(kTop).plus(kBottom);
  REQUIRE(distance(linear.forward(kX), at::matmul(kX, merged().t()) + kB) < kFloor);
  REQUIRE(distance(linear.dense(), merged()) < kFloor);
  REQUIRE(Linear(kW).dense().is_same(kW));
  REQUIRE(distance(kW, random_tensor({7, 5}, 1)) == 0);  // the weight itself stays
}

TEST_CASE("rows of a Linear take what is added to them along", "[nn]") {
  const auto linear = Linear(kW, kB).plus(kTop).plus(kBottom);
  const auto first = GENERATE(0, 2, 3, 4, 6), n = GENERATE(1, 2, 4);
  if (first + n > 7) return;
  const auto rows = linear.rows(first, n);
  REQUIRE(distance(rows.dense(), merged().narrow(0, first, n)) < kFloor);
  REQUIRE(distance(rows.forward(kX), linear.forward(kX).narrow(2, first, n)) < kFloor);
}

TEST_CASE("a wider addition is made in its own precision and rounded once", "[nn]") {
  const auto x = kX.to(torch::kBFloat16), W = kW.to(torch::kBFloat16);
  const nn::LowRank wide{kTop.A.to(torch::kFloat32), kTop.B.to(torch::kFloat32), 0.5, 0};
  const auto base = Linear(W).forward(x);
  auto sum = base.to(torch::kFloat32);
  sum.narrow(2, 0, 4) += 0.5 * at::matmul(at::matmul(x.to(torch::kFloat32), wide.A.t()), wide.B.t());
  const auto y = Linear(W).plus(wide).forward(x);
  REQUIRE(y.scalar_type() == torch::kBFloat16);
  // The float32 sums may differ by their order, and so, seldom, their roundings by one step of eight bits.
  REQUIRE(((y.to(torch::kFloat32) - sum).abs() <= sum.abs() / 256 + 1e-6).all().item<bool>());
  REQUIRE(distance(y.narrow(2, 4, 3), base.narrow(2, 4, 3)) == 0);
}

TEST_CASE("gradients reach the matrices of an addition", "[nn]") {
  auto A = kTop.A.clone().requires_grad_(), B = kTop.B.clone().requires_grad_();
  Linear(kW, kB).plus({A, B, 0.5, 2}).forward(kX).sum().backward();
  // d sum / dB = scaling * sum over positions of A x, the same in every row; and so for A.
  const auto x = kX.sum({0, 1});
  REQUIRE(distance(B.grad(), (0.5 * at::mv(kTop.A, x)).expand({4, 2})) < kFloor);
  REQUIRE(distance(A.grad(), 0.5 * at::outer(kTop.B.sum(0), x)) < kFloor);
}

TEST_CASE("a Linear names and counts its tensors", "[nn]") {
  const auto linear = Linear(kW, kB).plus(kTop);
  std::vector<std::string> names;
  Linear::for_each_tensor(linear, "attn.QKV",
                          [&](const std::string& name, const torch::Tensor&) { names.push_back(name); });
  REQUIRE(names == std::vector<std::string>{"attn.W_QKV", "attn.b_QKV", "attn.A_QKV.0", "attn.B_QKV.0"});
  REQUIRE(linear.numel() == 7 * 5 + 7 + 2 * 5 + 4 * 2);
  REQUIRE(linear.nbytes() == 8 * linear.numel());
}

TEST_CASE("a Linear refuses what does not fit", "[nn]") {
  REQUIRE_THROWS_AS(Linear(kB), ShapeError);
  REQUIRE_THROWS_AS(Linear(kW, random_tensor({5}, 0)), ShapeError);
  REQUIRE_THROWS_AS(Linear(kW).plus({kTop.A, kTop.B, 1, 4}), ShapeError);  // beyond the last row
  REQUIRE_THROWS_AS(Linear(kW).plus({kTop.B, kTop.A, 1, 0}), ShapeError);
}

TEST_CASE("the visitor meets every tensor of a block once, in the order of the pass", "[nn]") {
  const auto parts = testing::tiny_model()->block(0)->parts();
  std::vector<std::string> names;
  int64_t n = 0;
  nn::for_each_tensor(parts, [&](const std::string& name, const torch::Tensor& t) {
    names.push_back(name);
    n += t.numel();
  });
  REQUIRE(names == std::vector<std::string>{"ln1.w", "attn.W_QKV", "attn.b_QKV", "attn.W_O", "ln2.w",
                                            "mlp.W_in", "mlp.W_out"});
  REQUIRE(n == 16 + 32 * 16 + 32 + 16 * 16 + 16 + 48 * 16 + 16 * 24);  // the sizes of tiny_model
}

#include <torch/types.h>
#include <catch2/catch.hpp>

#include "introspect/nn/mlp.h"

using namespace introspect;

TEST_CASE("A trained bias of an MLP gets its gradient, in however many rows", "[nn]") {
  const int64_t D = 32, M = 64;
  const auto bfloat16 = at::TensorOptions(torch::kBFloat16);
  for (const int64_t rows : {15, 16}) {  // from 16 on one kernel does all, where nobody needs what it skips
    for (const bool first : {true, false}) {
      const auto b_in = at::zeros({2 * M}, bfloat16).set_requires_grad(first);
      const auto b_out = at::zeros({D}, bfloat16).set_requires_grad(!first);
      const nn::MlpWeights weights = {nn::Linear(at::ones({2 * M, D}, bfloat16), b_in),
                                      nn::Linear(at::ones({D, M}, bfloat16), b_out)};
      const nn::Mlp mlp(weights, ops::Activation::kSilu);
      const auto y = mlp.forward(at::ones({1, rows, D}, bfloat16), nn::Context{});
      REQUIRE(y.requires_grad());
      y.sum().backward();
      const auto gradient = first ? b_in.grad() : b_out.grad();
      REQUIRE(gradient.defined());
      REQUIRE(gradient.abs().min().item<float>() > 0);
    }
  }
}

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/hooks/hook_registry.h"
#include "introspect/hooks/intervention_json.h"

using namespace introspect;
using hooks::HookRegistry;
using hooks::Intervention;
using hooks::Point;

namespace {

hooks::HookPoints every_point(int64_t n_layers) {
  hooks::HookPoints points{.n_layers = n_layers,
                           .d_model = 3,
                           .n_heads = 2,
                           .n_key_value_heads = 1,
                           .d_head = 4,
                           .d_mlp = 5,
                           .d_vocab = 6};
  points.points.set();
  return points;
}

}  // namespace

TEST_CASE("an intervention adds its direction to its positions and rows only", "[hooks]") {
  const auto x = at::zeros({2, 5, 3});
  Intervention add{.values = {{1, torch::tensor({1.0, 2.0, 3.0, 4.0, 5.0, 6.0}).view({2, 3})}},
                   .strength = 2.0,
                   .first_position = 12,
                   .last_position = 14};
  const auto y = hooks::apply(add, 1, x, /*offset=*/10);
  auto expected = at::zeros({2, 5, 3});
  expected.narrow(1, 2, 2).copy_(2 * torch::tensor({1.0, 2.0, 3.0, 4.0, 5.0, 6.0}).view({2, 1, 3}));
  REQUIRE(at::equal(y, expected));
  REQUIRE(hooks::apply(add, 0, x, 10).is_same(x));
  REQUIRE(hooks::apply(add, 1, x, 20).is_same(x));
}

TEST_CASE("an intervention of strength zero leaves nothing behind", "[hooks]") {
  HookRegistry registry(every_point(4));
  registry.add(Intervention{.values = {{1, at::ones({3})}}, .strength = 0.0});
  REQUIRE(registry.empty());
}

TEST_CASE("interventions are checked when they are added", "[hooks]") {
  HookRegistry registry(every_point(4));
  REQUIRE_THROWS_AS(registry.add(Intervention{.values = {{4, at::ones({3})}}}), std::out_of_range);
  REQUIRE_THROWS_AS(registry.add(Intervention{.values = {{1, at::ones({2})}}}), ShapeError);
  REQUIRE_THROWS_AS(registry.add(Intervention{.values = {{1, at::full({3}, NAN)}}}), std::invalid_argument);
  REQUIRE_THROWS_AS(registry.add(Intervention{.values = {{1, at::ones({3})}}, .strength = NAN}),
                    std::invalid_argument);
}

TEST_CASE("operators of other modules are found by their name, and names are taken once", "[hooks]") {
  using Catch::Matchers::Contains;
  hooks::register_operator(
      "test.reverse",
      {.apply = [](const hooks::Operator::Input& in) { return in.x.flip(-1); }, .operands = {}});
  const Intervention reverse{.op = "test.reverse", .values = {{1, {}}}, .positions = {1}};
  const auto x = at::arange(6.0).view({1, 2, 3});
  const auto y = hooks::apply(reverse, 1, x, 0);
  REQUIRE(at::equal(y, torch::tensor({0.0, 1.0, 2.0, 5.0, 4.0, 3.0}).view({1, 2, 3})));
  REQUIRE(at::equal(x, at::arange(6.0).view({1, 2, 3})));
  const auto nothing = [](const hooks::Operator::Input& in) { return in.x; };
  REQUIRE_THROWS_AS(hooks::register_operator("add", {.apply = nothing}), std::invalid_argument);
  REQUIRE_THROWS_AS(hooks::register_operator("test.none", {}), std::invalid_argument);
  REQUIRE_THROWS_WITH(hooks::find_operator("reverse"), Contains("test.reverse"));
}

TEST_CASE("what replaces an activation is never the operand's own memory", "[hooks]") {
  const auto stored = at::ones({1, 2, 3});
  const Intervention replace{.op = "replace", .values = {{1, stored}}};
  auto y = hooks::apply(replace, 1, at::zeros({1, 2, 3}), 0);
  y.fill_(7);
  REQUIRE(at::equal(stored, at::ones({1, 2, 3})));
}

TEST_CASE("half-precision activations are rounded once", "[hooks]") {
  const auto x = torch::tensor({1.0, 0.5, 0.25}, torch::kBFloat16).view({1, 1, 3});
  const auto v = torch::tensor({0.1F, 0.7F, -0.3F});
  const Intervention ablate{.op = "ablate", .values = {{1, v}}, .strength = 0.3};
  const auto wide = x.to(torch::kFloat64), u = v.to(torch::kFloat64) / v.to(torch::kFloat64).norm();
  const auto exact = wide - 0.3 * (wide * u).sum() * u;
  REQUIRE(at::equal(hooks::apply(ablate, 1, x, 0), exact.to(torch::kBFloat16)));
}

TEST_CASE("a tensor's hash is that of its dtype, shape and bytes", "[hooks]") {
  // sha256 of "Float[2]:" and the bytes of 1.0f and 2.0f, by Python's hashlib
  REQUIRE(hooks::tensor_hash(torch::tensor({1.0F, 2.0F})) ==
          "bd94362ad8d39b13311bfdc3ae3b1a6de7a7dfce05c1b2bf833e9d774eb9410a");
  REQUIRE_THROWS_AS(hooks::tensor_hash({}), ShapeError);
}

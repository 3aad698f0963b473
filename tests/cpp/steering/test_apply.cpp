#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/hooks/intervention_json.h"
#include "introspect/steering/apply.h"

using namespace introspect;
using hooks::Intervention;
using hooks::Phase;
using hooks::Text;
using steering::ControlVector;

namespace {

ControlVector constant(std::map<int64_t, double> by_layer) {
  ControlVector::Directions directions;
  for (const auto& [layer, value] : by_layer) directions[layer] = at::full({2}, value);
  return ControlVector("qwen2", directions);
}

}  // namespace

TEST_CASE("the operators of steering are known to a program that has only read a file", "[steering]") {
  const auto read = hooks::from_json(R"({"op": "project_to", "parameters": {"target": 6.0}})", {});
  auto project = read;
  project.values[0] = torch::tensor({0.0F, 2.0F});
  REQUIRE(at::equal(hooks::apply(project, 0, torch::tensor({1.0, 1.0}).view({1, 1, 2}), 0),
                    torch::tensor({1.0, 6.0}).view({1, 1, 2})));
}

TEST_CASE("vectors of several rows become one intervention for the layers that the same rows have",
          "[steering]") {
  const auto a = constant({{1, 1.0}, {2, 2.0}}), b = constant({{2, 4.0}, {3, 8.0}}), c = constant({{1, 5.0}});
  const auto made = steering::as_interventions({&a, nullptr, &b, &c}, {.strength = 3.0}, 4);
  std::map<std::vector<int64_t>, std::map<int64_t, hooks::Operands>> by_rows;
  for (const auto& one : made) {
    REQUIRE(one.strength == 3.0);
    by_rows[one.rows] = one.values;
  }
  REQUIRE(by_rows.size() == 3);
  REQUIRE(at::equal(by_rows[{0, 3}][1].v(), torch::tensor({1.0F, 1.0F, 5.0F, 5.0F}).view({2, 2})));
  REQUIRE(at::equal(by_rows[{0, 2}][2].v(), torch::tensor({2.0F, 2.0F, 4.0F, 4.0F}).view({2, 2})));
  REQUIRE(at::equal(by_rows[{2}][3].v(), torch::tensor({8.0F, 8.0F}).view({1, 2})));
  REQUIRE(steering::as_interventions({&a}, {.rows = {7, 9}}, 4, std::pair<int64_t, int64_t>{2, 3})[0]
              .values.size() == 1);
  REQUIRE_THROWS_AS(steering::as_interventions({&a, &b}, {.rows = {1}}, 4), std::invalid_argument);
  REQUIRE_THROWS_AS(steering::as_interventions({&a}, {.op = "rotate"}, 4, {}, &b), ConfigError);
  REQUIRE_THROWS_AS(steering::as_interventions({&a}, {}, 2), std::out_of_range);
}

TEST_CASE("an intervention is cut down to some of its rows with their operands", "[hooks]") {
  const auto operand = at::arange(6.0).view({3, 2});
  const auto some = hooks::restrict_rows({.values = {{0, operand}}, .rows = {4, 1, 6}}, {6, 2, 4});
  REQUIRE(some->rows == std::vector<int64_t>{4, 6});
  REQUIRE(at::equal(some->values.at(0).v(), operand.index_select(0, torch::tensor({0, 2}, torch::kLong))));
  const auto of_all = hooks::restrict_rows({.values = {{0, operand}}}, {2, 0});
  REQUIRE(of_all->rows == std::vector<int64_t>{2, 0});
  REQUIRE(at::equal(of_all->values.at(0).v(), operand.index_select(0, torch::tensor({2, 0}, torch::kLong))));
  REQUIRE(!hooks::restrict_rows({.values = {{0, operand}}, .rows = {4, 1, 6}}, {2}));
  REQUIRE(!hooks::restrict_rows({.values = {{0, at::ones({2})}}}, {}));
  REQUIRE_THROWS_AS(hooks::restrict_rows({.values = {{0, operand}}}, {3}), std::out_of_range);
}

TEST_CASE("a text filter does not take a pass for a text it does not know", "[hooks]") {
  const auto x = at::zeros({1, 2, 2});
  Intervention add{.values = {{0, at::ones({2})}}};
  add.text.skip_padding = true;
  REQUIRE(at::equal(hooks::apply(add, 0, x, 3), at::ones({1, 2, 2})));  // nothing is known to be padding
  add.text.phase = Phase::kPrompt;
  REQUIRE_THROWS_AS(hooks::apply(add, 0, x, 3), HookError);
  Text text{.n_prompt = 4};
  REQUIRE(at::equal(hooks::apply(add, 0, x, 3, &text), torch::tensor({1.0, 1.0, 0.0, 0.0}).view({1, 2, 2})));
  add.text.after = {7};
  text.tokens_BS = torch::tensor({{7, 7}}, torch::kLong);
  text.first_token = 3;
  REQUIRE_THROWS_AS(hooks::apply(add, 0, x, 3, &text), HookError);
  text.tokens_BS = torch::tensor({{1, 7, 1, 1, 1}}, torch::kLong);
  text.first_token = 0;
  REQUIRE(at::equal(hooks::apply(add, 0, x, 3, &text), torch::tensor({1.0, 1.0, 0.0, 0.0}).view({1, 2, 2})));
}

TEST_CASE("what a filter leaves of an average must be in one pass", "[hooks]") {
  Intervention mean{.op = "mean", .values = {{0, {}}}};
  mean.text.not_tokens = {9};
  const Text text{.tokens_BS = torch::tensor({{1, 9, 3}}, torch::kLong)};
  const auto x = torch::tensor({2.0, 100.0, 4.0}).view({1, 3, 1});
  REQUIRE(at::equal(hooks::apply(mean, 0, x, 0, &text), torch::tensor({3.0, 100.0, 3.0}).view({1, 3, 1})));
  const Text later{.tokens_BS = text.tokens_BS, .first_token = 5};
  REQUIRE_THROWS_AS(hooks::apply(mean, 0, x, 5, &later), HookError);
}

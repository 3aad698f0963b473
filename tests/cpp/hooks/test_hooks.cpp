#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/hooks/hook_registry.h"

using namespace introspect;
using hooks::HookRegistry;
using hooks::Point;
using hooks::Site;

namespace {

hooks::HookPoints every_point(int64_t n_layers) {
  hooks::HookPoints points{.n_layers = n_layers, .d_model = 3};
  points.points.set();
  return points;
}

constexpr hooks::HookFlags kEverything = {true, true, true, true};

}  // namespace

TEST_CASE("every hook name parses back to its site", "[hooks]") {
  const auto points = every_point(12);
  const auto names = points.names(kEverything);
  REQUIRE(names.size() == points.n_sites());
  std::vector<bool> seen(names.size(), false);
  for (const auto& name : names) {
    const Site site = points.parse(name);
    REQUIRE(hooks::hook_name(site) == name);
    REQUIRE_FALSE(seen[points.index(site)]);
    seen[points.index(site)] = true;
  }
}

TEST_CASE("points that only hooks need are left out unless a flag asks for them", "[hooks]") {
  const auto points = every_point(2);
  REQUIRE(points.names(kEverything).size() - points.names().size() == 6 * 2);
  REQUIRE(points.parse("blocks.1.attn.hook_result") == Site{Point::kResult, 1});
}

TEST_CASE("a misspelt name, or one of another architecture, is an error that lists the nearest", "[hooks]") {
  using Catch::Matchers::Contains;
  auto points = every_point(12);
  REQUIRE_THROWS_WITH(points.parse("blocks.3.hook_resid_pots"), Contains("blocks.3.hook_resid_post"));
  for (const char* name :
       {"blocks.12.hook_resid_post", "hook_resid_post", "blocks.0.hook_embed", "blocks.-1.hook_z",
        "blocks..hook_resid_post", "blocks.3", "", "blocks.3.attn.hook_z "})
    REQUIRE_THROWS_AS(points.parse(name), HookError);
  points.points.reset(static_cast<size_t>(Point::kPosEmbed));
  REQUIRE_THROWS_WITH(points.parse("hook_pos_embed"), Contains("hook_embed"));
}

TEST_CASE("an intervention adds its direction to its positions and rows only", "[hooks]") {
  const auto x = at::zeros({2, 5, 3});
  hooks::Intervention add{.directions = {{1, torch::tensor({1.0, 2.0, 3.0, 4.0, 5.0, 6.0}).view({2, 3})}},
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
  registry.add(hooks::Intervention{.directions = {{1, at::ones({3})}}, .strength = 0.0});
  REQUIRE(registry.empty());
}

TEST_CASE("interventions are checked when they are added", "[hooks]") {
  HookRegistry registry(every_point(4));
  using hooks::Intervention;
  REQUIRE_THROWS_AS(registry.add(Intervention{.directions = {{4, at::ones({3})}}}), std::out_of_range);
  REQUIRE_THROWS_AS(registry.add(Intervention{.directions = {{1, at::ones({2})}}}), ShapeError);
  REQUIRE_THROWS_AS(registry.add(Intervention{.directions = {{1, at::full({3}, NAN)}}}),
                    std::invalid_argument);
  REQUIRE_THROWS_AS(registry.add(Intervention{.directions = {{1, at::ones({3})}}, .strength = NAN}),
                    std::invalid_argument);
}

TEST_CASE("a callback sees what interventions made and may replace it", "[hooks]") {
  HookRegistry registry(every_point(4));
  torch::Tensor seen;
  registry.add("blocks.2.hook_resid_post", [&](const torch::Tensor& x, Site) -> std::optional<torch::Tensor> {
    seen = x;
    return x * 10;
  });
  registry.add(hooks::Intervention{.directions = {{2, at::ones({3})}}});
  const auto out = registry.run({Point::kResidPost, 2}, at::zeros({1, 2, 3}), 0);
  REQUIRE(at::equal(seen, at::ones({1, 2, 3})));
  REQUIRE(at::equal(out, at::full({1, 2, 3}, 10.0)));
}

TEST_CASE("a replacement of another shape or dtype is an error that names the hook", "[hooks]") {
  using Catch::Matchers::Contains;
  HookRegistry registry(every_point(4));
  registry.add("hook_embed", [](const torch::Tensor& x, Site) { return std::optional(x.narrow(1, 0, 1)); });
  REQUIRE_THROWS_WITH(registry.run({Point::kEmbed}, at::zeros({1, 2, 3}), 0), Contains("hook_embed"));
  HookRegistry dtype(every_point(4));
  dtype.add("hook_embed", [](const torch::Tensor& x, Site) { return std::optional(x.to(torch::kFloat64)); });
  REQUIRE_THROWS_AS(dtype.run({Point::kEmbed}, at::zeros({1, 2, 3}), 0), HookError);
}

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/hooks/hook_registry.h"

using namespace introspect;
using hooks::HookRegistry;
using hooks::Point;
using hooks::Site;

TEST_CASE("every hook name parses back to its site", "[hooks]") {
  const int64_t n_layers = 12;
  const auto names = hooks::hook_names(n_layers);
  REQUIRE(names.size() == hooks::n_sites(n_layers));
  std::vector<bool> seen(names.size(), false);
  for (const auto& name : names) {
    const Site site = hooks::parse_hook_name(name, n_layers);
    REQUIRE(hooks::hook_name(site) == name);
    REQUIRE_FALSE(seen[site.index(n_layers)]);
    seen[site.index(n_layers)] = true;
  }
}

TEST_CASE("a misspelt name is an error that lists the nearest names", "[hooks]") {
  using Catch::Matchers::Contains;
  REQUIRE_THROWS_WITH(hooks::parse_hook_name("blocks.3.hook_resid_pots", 12),
                      Contains("blocks.3.hook_resid_post"));
  for (const char* name :
       {"blocks.12.hook_resid_post", "hook_resid_post", "blocks.0.hook_embed", "blocks.-1.hook_z",
        "blocks..hook_resid_post", "blocks.3", "", "blocks.3.attn.hook_z "})
    REQUIRE_THROWS_AS(hooks::parse_hook_name(name, 12), HookError);
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
  HookRegistry registry(4, 3);
  registry.add(hooks::Intervention{.directions = {{1, at::ones({3})}}, .strength = 0.0});
  REQUIRE(registry.empty());
}

TEST_CASE("interventions are checked when they are added", "[hooks]") {
  HookRegistry registry(4, 3);
  using hooks::Intervention;
  REQUIRE_THROWS_AS(registry.add(Intervention{.directions = {{4, at::ones({3})}}}), std::out_of_range);
  REQUIRE_THROWS_AS(registry.add(Intervention{.directions = {{1, at::ones({2})}}}), ShapeError);
  REQUIRE_THROWS_AS(registry.add(Intervention{.directions = {{1, at::full({3}, NAN)}}}),
                    std::invalid_argument);
  REQUIRE_THROWS_AS(registry.add(Intervention{.directions = {{1, at::ones({3})}}, .strength = NAN}),
                    std::invalid_argument);
}

TEST_CASE("a callback sees what interventions made and may replace it", "[hooks]") {
  HookRegistry registry(4, 3);
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
  HookRegistry registry(4, 3);
  registry.add("hook_embed", [](const torch::Tensor& x, Site) { return std::optional(x.narrow(1, 0, 1)); });
  REQUIRE_THROWS_WITH(registry.run({Point::kEmbed}, at::zeros({1, 2, 3}), 0), Contains("hook_embed"));
  HookRegistry dtype(4, 3);
  dtype.add("hook_embed", [](const torch::Tensor& x, Site) { return std::optional(x.to(torch::kFloat64)); });
  REQUIRE_THROWS_AS(dtype.run({Point::kEmbed}, at::zeros({1, 2, 3}), 0), HookError);
}

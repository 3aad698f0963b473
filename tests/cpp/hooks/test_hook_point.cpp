#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/hooks/hook_point.h"

using namespace introspect;
using hooks::Point;
using hooks::Site;

namespace {

hooks::HookPoints every_point(int64_t n_layers) {
  hooks::HookPoints points{.n_layers = n_layers, .d_model = 3};
  points.points.set();
  return points;
}

constexpr hooks::HookFlags kEverything = {true, true, true, true, true};

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
  REQUIRE(points.names(kEverything).size() - points.names().size() == 7 * 2);
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

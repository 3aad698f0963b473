#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/hooks/hook_registry.h"

using namespace introspect;
using hooks::ActivationCache;
using hooks::HookRegistry;
using hooks::Part;
using hooks::Point;
using hooks::Site;

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

TEST_CASE("a callback sees what interventions made and may replace it", "[hooks]") {
  HookRegistry registry(every_point(4));
  torch::Tensor seen;
  registry.add("blocks.2.hook_resid_post", [&](const torch::Tensor& x, Site) -> std::optional<torch::Tensor> {
    seen = x;
    return x * 10;
  });
  registry.add(hooks::Intervention{.values = {{2, at::ones({3})}}});
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

TEST_CASE("a recorder wants a site and does not change it; everything else does", "[hooks]") {
  const Site site{Point::kResidPost, 2};
  const char* name = "blocks.2.hook_resid_post";
  HookRegistry registry(every_point(4));
  const auto cache = std::make_shared<ActivationCache>();
  const auto recorder = registry.record(name, cache);
  const auto observer = registry.observe(name, [](const torch::Tensor&, Site) {});
  REQUIRE((registry.wants(site) && !registry.changes(site) && !registry.needs_grad()));
  REQUIRE_FALSE(registry.wants({Point::kResidPost, 1}));

  const auto gradient = registry.record(name, cache, {.gradient = true});
  REQUIRE((registry.changes(site) && registry.needs_grad() && registry.has_backward()));
  registry.remove(gradient);
  REQUIRE((!registry.changes(site) && !registry.needs_grad() && !registry.has_backward()));

  const auto steering = registry.add(hooks::Intervention{.values = {{2, at::ones({3}).requires_grad_()}}});
  REQUIRE((registry.changes(site) && registry.needs_grad() && !registry.has_backward()));
  for (const auto id : {recorder, observer, steering}) registry.remove(id);
  REQUIRE((registry.empty() && !registry.wants(site)));
}

TEST_CASE("a whole activation is kept by reference, a part or a view in memory of its own", "[hooks]") {
  HookRegistry registry(every_point(4));
  const auto whole = std::make_shared<ActivationCache>(), part = std::make_shared<ActivationCache>();
  registry.record("hook_embed", whole);
  registry.record("hook_embed", part, {.part = {-1}});
  const auto x = at::rand({2, 5, 3});
  REQUIRE(registry.run({Point::kEmbed}, x, 0).is_same(x));
  REQUIRE(whole->at({Point::kEmbed}).is_alias_of(x));
  REQUIRE(at::equal(part->at("hook_embed"), x.select(1, 4)));
  REQUIRE(part->nbytes() == 2 * 3 * 4);
  registry.run({Point::kEmbed}, at::rand({2, 5, 6}).narrow(2, 3, 3), 0);
  REQUIRE(whole->nbytes() == 2 * 5 * 3 * 4);
}

TEST_CASE("only what all recorders of a site ask for is asked of it", "[hooks]") {
  const Site site{Point::kPattern, 1};
  const char* name = "blocks.1.attn.hook_pattern";
  HookRegistry registry(every_point(4));
  const Part last{int64_t{-1}, {1}};
  const auto first = std::make_shared<ActivationCache>(), second = std::make_shared<ActivationCache>();
  REQUIRE(registry.asked(site).everything());
  registry.record(name, first, {.part = last});
  registry.record(name, second, {.part = last});
  REQUIRE(registry.asked(site) == last);

  const auto pattern_BHTS = at::rand({2, 2, 5, 5});
  const auto expected = pattern_BHTS.index({at::indexing::Slice(), at::indexing::Slice(1, 2), 4});
  registry.record(site, pattern_BHTS.narrow(1, 1, 1).narrow(2, 4, 1), last);
  REQUIRE((at::equal(first->at(site), expected) && at::equal(second->at(site), expected)));
  REQUIRE_THROWS_AS(registry.record(site, pattern_BHTS, Part{int64_t{0}, {}}), HookError);

  const auto others = registry.record(name, second, {.part = {std::vector<int64_t>{0, 3}, {}}});
  REQUIRE(registry.asked(site).everything());
  registry.record(site, pattern_BHTS, {});
  REQUIRE(at::equal(first->at(site), expected));
  REQUIRE(at::equal(second->at(site), pattern_BHTS.index_select(2, torch::tensor({0, 3}))));
  registry.remove(others);
  REQUIRE(registry.asked(site) == last);
}

TEST_CASE("what a callback writes in place replaces the activation and leaves the original", "[hooks]") {
  HookRegistry registry(every_point(4));
  torch::Tensor kept;
  registry.add("hook_embed", [&](const torch::Tensor& x, Site) -> std::optional<torch::Tensor> {
    kept = x;
    kept.add_(1);
    return std::nullopt;
  });
  const auto x = at::zeros({1, 2, 3});
  const auto out = registry.run({Point::kEmbed}, x, 0);
  kept.fill_(9);
  REQUIRE(at::equal(x, at::zeros({1, 2, 3})));
  REQUIRE(at::equal(out, at::ones({1, 2, 3})));
}

TEST_CASE("where nothing requires a gradient the graph begins at the first site that is asked", "[hooks]") {
  HookRegistry registry(every_point(4));
  const auto cache = std::make_shared<ActivationCache>();
  registry.record("hook_embed", cache, {.gradient = true});
  const auto x = at::ones({1, 2, 3});
  const auto y = registry.run({Point::kEmbed}, x, 0);
  REQUIRE_FALSE(x.requires_grad());
  (y * y).sum().backward();
  REQUIRE(at::equal(cache->at("hook_embed_grad"), at::full({1, 2, 3}, 2.0)));
  const torch::NoGradGuard off;
  REQUIRE(registry.run({Point::kEmbed}, x, 0).is_same(x));
}

TEST_CASE("a replacement gradient is what flows on", "[hooks]") {
  HookRegistry registry(every_point(4));
  registry.add("hook_embed", [](const torch::Tensor& g, Site) { return std::optional(g * 10); },
               {.direction = hooks::Direction::kBackward});
  const auto x = at::ones({1, 2, 3}).requires_grad_();
  registry.run({Point::kEmbed}, x, 0).sum().backward();
  REQUIRE(at::equal(x.grad(), at::full({1, 2, 3}, 10.0)));
}

#include <catch2/catch.hpp>

#include "engine/run_plan.h"

#include "tiny_model.h"

using namespace introspect;
using engine::Capture;
using engine::Captured;
using engine::Piece;
using engine::Plan;
using introspect::testing::distance;
using introspect::testing::kFloor;
using introspect::testing::run_alone;
using introspect::testing::tiny_model;
using Ids = std::vector<int64_t>;

namespace {

using Models = std::vector<std::shared_ptr<const models::Model>>;

Piece piece(int64_t parent, int64_t content, Ids tokens, int64_t model = 0) {
  Piece out;
  out.parent = parent;
  out.model = model;
  out.content = content;
  out.tokens = std::move(tokens);
  return out;
}

Capture activation(int64_t piece, hooks::Point point, Ids layers, Ids positions, int64_t group) {
  Capture out;
  out.piece = piece;
  out.point = point;
  out.layers = std::move(layers);
  out.positions = std::move(positions);
  out.group = group;
  return out;
}

Plan plan_of(const Models& models, std::vector<Piece> pieces, std::vector<Capture> captures,
             const engine::PlanOptions& options = {}) {
  return Plan(std::move(pieces), std::move(captures), models[0]->cfg(), models[0]->dtype(), torch::kCPU,
              options);
}

std::map<int64_t, Captured> run(const Plan& plan, const Models& models) {
  std::map<int64_t, Captured> out;
  engine::run_plan(plan, models, [&](std::vector<std::pair<int64_t, Captured>> captured) {
    for (auto& [c, kept] : captured) REQUIRE(out.emplace(c, std::move(kept)).second);
  });
  return out;
}

}  // namespace

TEST_CASE("pieces run side by side are what each is by itself", "[engine]") {
  const Models models = {tiny_model(0), tiny_model(1)};
  const auto& point = hooks::Point::kResidPost;
  // A prefix, a steered and a plain turn after it, the latter of another model; and a copy of the first two tokens
  // of the steered turn, with one token more after it.
  auto steered = piece(0, 2, {8, 9, 10});
  const hooks::Intervention added{.values = {{1, testing::random_tensor({16}, 7)}}, .strength = 2.0};
  steered.interventions = {added};
  steered.intervention_ids = {1};
  auto copy = piece(0, 3, {8, 9});
  copy.copied = 1;
  const std::vector<Piece> pieces = {piece(-1, 1, {5, 6}), steered, piece(0, 4, {8, 9, 10}, 1), copy,
                                     piece(3, 5, {11})};
  Capture cache{{.what = Capture::What::cache}};
  cache.piece = 4, cache.group = 5;
  const auto plan = plan_of(models, pieces,
                            {activation(1, point, {0, 3}, {2, 0}, 1), activation(2, point, {3}, {1}, 2),
                             activation(4, hooks::Point::kZ, {2}, {0}, 3),
                             activation(0, hooks::Point::kEmbed, {-1}, {0, 1}, 4), cache});
  const auto got = run(plan, models);
  const auto before = run_alone(*models[0], {5, 6});
  const auto turn = run_alone(*models[0], {8, 9, 10}, {added}, before.cache);
  const auto other = run_alone(*models[1], {8, 9, 10}, {}, before.cache);
  const auto last = run_alone(*models[0], {11}, {}, turn.cache.slice(0, 4));
  REQUIRE(distance(got.at(0).values, turn.at(point, {0, 3}, {2, 0})) < kFloor);
  REQUIRE(distance(got.at(1).values, other.at(point, {3}, {1})) < kFloor);
  REQUIRE(distance(got.at(2).values, last.at(hooks::Point::kZ, {2}, {0})) < kFloor);
  REQUIRE(distance(got.at(3).values, before.at(hooks::Point::kEmbed, {-1}, {0, 1})) < kFloor);
  REQUIRE(distance(*got.at(4).cache, last.cache) < kFloor);
}

TEST_CASE("captures of a narrow model are float32, its caches of its own dtype", "[engine]") {
  const Models models = {tiny_model(0, torch::kBFloat16)};
  Capture attention{{.what = Capture::What::attention}};
  attention.layers = {1}, attention.positions = {2}, attention.last_key = 3, attention.group = 1;
  Capture cache{{.what = Capture::What::cache}};
  cache.group = 2;
  const auto got = run(plan_of(models, {piece(-1, 1, {5, 6, 7})},
                               {activation(0, hooks::Point::kResidPost, {3}, {2}, 0), attention, cache}),
                       models);
  REQUIRE(got.at(0).values.scalar_type() == torch::kFloat32);
  REQUIRE(got.at(0).values.sizes() == at::IntArrayRef{1, 1, 16});
  REQUIRE(got.at(1).values.scalar_type() == torch::kFloat32);
  REQUIRE(got.at(1).values.sizes() == at::IntArrayRef{1, 1, 4, 3});
  // Softmax in float32: rows sum to one as closely as float32 does, which bfloat16 is far from.
  REQUIRE(at::allclose(got.at(1).values.sum(-1), at::ones({1, 1, 4}), 0, 1e-6));
  REQUIRE(got.at(2).cache->dtype() == torch::kBFloat16);
  REQUIRE(got.at(2).cache->length() == 3);
}

TEST_CASE("captures come pass by pass, and progress counts the tokens that went through a layer",
          "[engine]") {
  const Models models = {tiny_model()};
  std::vector<Piece> pieces = {piece(-1, 0, {5, 6, 7})};
  std::vector<Capture> captures;
  for (int64_t q = 1; q <= 6; ++q) {
    pieces.push_back(piece(0, q, {10 + q, 9}));
    captures.push_back(activation(q, hooks::Point::kResidPost, {q % 4}, {1}, q));
  }
  const auto plan = plan_of(models, pieces, captures, {.most_rows = 7});
  REQUIRE(plan.passes().size() == 3);
  std::vector<Ids> handed_out;
  int64_t last = 0;
  engine::run_plan(
      plan, models,
      [&](std::vector<std::pair<int64_t, Captured>> captured) {
        REQUIRE(handed_out.size() < plan.passes().size());
        Ids numbers;
        for (const auto& [c, kept] : captured) numbers.push_back(c);
        handed_out.push_back(numbers);
      },
      [&](const std::string&, int64_t done, int64_t total) {
        REQUIRE(total == plan.summary().token_layers_to_run);
        REQUIRE(done >= last);
        REQUIRE(done <= total);
        last = done;
      });
  REQUIRE(handed_out == plan.passes());
  REQUIRE(last == plan.summary().token_layers_to_run);
}

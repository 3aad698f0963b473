#include <catch2/catch.hpp>

#include <set>

#include "engine/plan.h"

using namespace introspect;
using Catch::Matchers::Contains;
using engine::Capture;
using engine::Piece;
using engine::Plan;
using hooks::Intervention;
using hooks::Point;
using Ids = std::vector<int64_t>;

namespace {

constexpr int64_t kLayers = 4;

models::Config config() {
  models::Config cfg;
  cfg.n_layers = kLayers, cfg.d_model = 16, cfg.n_heads = 4, cfg.n_key_value_heads = 2, cfg.d_head = 4;
  cfg.d_mlp = 24, cfg.d_vocab = 40, cfg.n_ctx = 64;
  return cfg;
}

Plan plan_of(std::vector<Piece> pieces, std::vector<Capture> captures,
             const engine::PlanOptions& options = {}) {
  for (size_t c = 0; c < captures.size(); ++c)
    if (captures[c].group == 0) captures[c].group = static_cast<int64_t>(c);
  return Plan(std::move(pieces), std::move(captures), config(), torch::kFloat32, torch::kCPU, options);
}

Piece piece(int64_t parent, int64_t content, Ids tokens) {
  Piece out;
  out.parent = parent;
  out.content = content;
  out.tokens = std::move(tokens);
  return out;
}

/// The same with an addition to the output of block `layer`.
Piece steered(Piece of, int64_t layer, int64_t id) {
  of.interventions = {Intervention{.values = {{layer, at::ones({16})}}}};
  of.intervention_ids = {id};
  return of;
}

Capture residual(int64_t piece, int64_t layer, Ids positions = {0}) {
  Capture out;
  out.piece = piece;
  out.positions = std::move(positions);
  out.layers = {layer};
  return out;
}

}  // namespace

TEST_CASE("an intervention acts at the height of what it changes", "[engine]") {
  for (const auto point : {Point::kEmbed, Point::kResidPre, Point::kResidPost})
    REQUIRE(engine::between_blocks(point));
  for (const auto point : {Point::kQ, Point::kPattern, Point::kResidMid, Point::kMlpOut})
    REQUIRE_FALSE(engine::between_blocks(point));
  REQUIRE(engine::acting_height(Point::kEmbed, -1) == 0);
  REQUIRE(engine::acting_height(Point::kResidPre, 2) == 2);
  REQUIRE(engine::acting_height(Point::kZ, 2) == 2);
  REQUIRE(engine::acting_height(Point::kResidPost, 2) == 3);
}

TEST_CASE("pieces are one slot up to where their interventions, or those before them, part them",
          "[engine]") {
  // A turn of three tokens, plain, steered after block 0 and after block 1, and a question of two after each.
  const auto turn = piece(-1, 1, {5, 6, 7});
  std::vector<Piece> pieces = {turn, steered(turn, 0, 1), steered(turn, 1, 2)};
  std::vector<Capture> captures;
  for (int64_t t = 0; t < 3; ++t) {
    pieces.push_back(piece(t, 2, {8, 9}));
    captures.push_back(residual(3 + t, kLayers - 1, {1}));
  }
  const auto plan = plan_of(pieces, captures);
  REQUIRE(plan.passes().size() == 1);
  REQUIRE(plan.depth(4) == 3);

  const auto heights = plan.heights(0);
  REQUIRE(heights.size() == kLayers + 1);
  // Before block 0 all turns are one, before block 1 two, then three; and so are the questions.
  const Ids states = {1, 2, 3, 3};
  for (int64_t h = 0; h < kLayers; ++h) {
    const auto& height = heights[static_cast<size_t>(h)];
    const auto n = states[static_cast<size_t>(h)];
    REQUIRE(static_cast<int64_t>(height.slots.size()) == 2 * n);
    REQUIRE(height.n_rows == n * (3 + 2));
    REQUIRE(height.n_keys == n * (3 + 2));
    for (int64_t question = 3; question < 6; ++question) {
      const auto& slot = height.slots[static_cast<size_t>(plan.slot_of(heights, h, question))];
      REQUIRE(slot.runs);
      REQUIRE(slot.rows.empty());
      REQUIRE(slot.parent == plan.slot_of(heights, h, question - 3));
      if (h > 0) REQUIRE(slot.source == plan.slot_of(heights, h - 1, question));
    }
  }
  REQUIRE(plan.slot_of(heights, 1, 3) == plan.slot_of(heights, 1, 5));
  REQUIRE(plan.slot_of(heights, 1, 3) != plan.slot_of(heights, 1, 4));
  // After the last block only what is read stands: one row of each question.
  REQUIRE(heights[kLayers].slots.size() == 3);
  REQUIRE(heights[kLayers].n_rows == 3);
  REQUIRE(heights[kLayers].n_keys == 0);
  for (const auto& slot : heights[kLayers].slots) {
    REQUIRE_FALSE(slot.runs);
    REQUIRE(slot.rows == Ids{1});
  }
  REQUIRE(plan.slot_of(heights, kLayers, 0) == -1);

  REQUIRE(plan.summary().n_pieces == 6);
  REQUIRE(plan.summary().n_captures == 3);
  REQUIRE(plan.summary().n_passes == 1);
  REQUIRE(plan.summary().token_layers_asked == 3 * 5 * kLayers);
  REQUIRE(plan.summary().token_layers_to_run == (1 + 2 + 3 + 3) * 5);
}

TEST_CASE("equal interventions on equal pieces are one slot at every height", "[engine]") {
  const auto turn = piece(-1, 1, {5, 6, 7});
  // Once each, and once in two pieces of the same effect.
  const auto plan = plan_of({steered(turn, 1, 1), steered(turn, 1, 1), steered(turn, 1, 2)},
                            {residual(0, 3), residual(1, 3, {2}), residual(2, 3)});
  REQUIRE(plan.summary().token_layers_to_run == 3 * (1 + 1 + 2 + 2));
  const auto heights = plan.heights(0);
  REQUIRE(plan.slot_of(heights, kLayers, 0) == plan.slot_of(heights, kLayers, 1));
  // What both read of it.
  REQUIRE(heights[kLayers].slots[static_cast<size_t>(plan.slot_of(heights, kLayers, 0))].rows == Ids{0, 2});
}

TEST_CASE("a copy has keys, but nothing of it runs", "[engine]") {
  const auto first = piece(-1, 1, {5, 6, 7});
  auto copy = piece(-1, 2, {6, 7});
  copy.copied = 0;
  copy.copied_first = 1;
  const auto plan = plan_of({first, copy, piece(1, 3, {8})}, {residual(2, 3)});
  REQUIRE(plan.summary().token_layers_to_run == (3 + 1) * kLayers);
  const auto heights = plan.heights(0);
  const auto& slot = heights[2].slots[static_cast<size_t>(plan.slot_of(heights, 2, 1))];
  REQUIRE_FALSE(slot.runs);
  REQUIRE(slot.copied == plan.slot_of(heights, 2, 0));
  REQUIRE(slot.n_rows == 0);
  REQUIRE(heights[2].n_rows == 3 + 1);
  REQUIRE(heights[2].n_keys == 3 + 2 + 1);
}

TEST_CASE("passes stay within the budget, hold every capture once, and a group together", "[engine]") {
  // Twenty questions after one prefix, each read in two captures of one group.
  std::vector<Piece> pieces = {piece(-1, 0, Ids(8, 5))};
  std::vector<Capture> captures;
  for (int64_t q = 1; q <= 20; ++q) {
    pieces.push_back(piece(0, q, Ids(4, q)));
    for (const int64_t layer : {1, 3}) {
      captures.push_back(residual(q, layer));
      captures.back().group = 100 + q;
    }
  }
  const auto whole = plan_of(pieces, captures);
  REQUIRE(whole.summary().n_passes == 1);
  REQUIRE(whole.summary().token_layers_to_run == (8 + 20 * 4) * kLayers);
  const auto alone = plan_of(pieces, {captures[0], captures[1]});
  for (const int64_t budget : {alone.summary().peak_bytes, 2 * alone.summary().peak_bytes}) {
    const auto plan = plan_of(pieces, captures, {.memory_budget = budget});
    const auto n_passes = static_cast<int64_t>(plan.passes().size());
    REQUIRE(n_passes > 1);
    REQUIRE(plan.summary().n_passes == n_passes);
    REQUIRE(plan.summary().peak_bytes <= budget);
    // What several passes need is run in each.
    REQUIRE(plan.summary().token_layers_to_run == (n_passes * 8 + 20 * 4) * kLayers);
    std::multiset<int64_t> seen;
    std::set<int64_t> done;
    for (const auto& pass : plan.passes()) {
      std::set<int64_t> groups;
      for (const int64_t c : pass) {
        seen.insert(c);
        groups.insert(plan.captures()[static_cast<size_t>(c)].group);
      }
      for (const int64_t group : groups) REQUIRE(done.insert(group).second);
    }
    REQUIRE(seen.size() == captures.size());
    REQUIRE(std::set<int64_t>(seen.begin(), seen.end()).size() == captures.size());
  }
  REQUIRE(plan_of(pieces, captures, {.memory_budget = 2 * alone.summary().peak_bytes}).passes().size() <
          plan_of(pieces, captures, {.memory_budget = alone.summary().peak_bytes}).passes().size());
}

TEST_CASE("a budget too small for one group names it", "[engine]") {
  std::vector<Piece> pieces = {piece(-1, 1, {5}), piece(-1, 2, Ids(60, 6))};
  std::vector<Capture> captures = {residual(0, 3), residual(1, 3)};
  captures[0].group = 41, captures[1].group = 42;
  const auto small = plan_of(pieces, {captures[0]}).summary().peak_bytes;
  REQUIRE_THROWS_AS(plan_of(pieces, captures, {.memory_budget = small}), std::invalid_argument);
  REQUIRE_THROWS_WITH(plan_of(pieces, captures, {.memory_budget = small}),
                      Contains("reading 42 ") && Contains("got " + std::to_string(small)));
}

TEST_CASE("a pass is no wider than it is let be", "[engine]") {
  std::vector<Piece> pieces;
  std::vector<Capture> captures;
  for (int64_t p = 0; p < 9; ++p) {
    pieces.push_back(piece(-1, p, {p, p}));
    captures.push_back(residual(p, 3));
  }
  const auto plan = plan_of(pieces, captures, {.most_rows = 6});
  REQUIRE(plan.passes().size() == 3);
  for (int64_t pass = 0; pass < 3; ++pass)
    for (const auto& height : plan.heights(pass)) REQUIRE(height.n_rows <= 6);
}

TEST_CASE("short passes run what they have in common once, where there is room for it", "[engine]") {
  // A prefix, a turn steered from block 1 and one from block 2 on, and ten questions after each.
  const auto prefix = piece(-1, 0, Ids(8, 5));
  std::vector<Piece> pieces = {prefix, steered(piece(0, 1, Ids(6, 7)), 1, 1),
                               steered(piece(0, 1, Ids(6, 7)), 2, 2)};
  std::vector<Capture> captures;
  for (int64_t turn = 1; turn <= 2; ++turn)
    for (int64_t q = 0; q < 10; ++q) {
      pieces.push_back(piece(turn, 10 + q, Ids(4, q)));
      captures.push_back(residual(static_cast<int64_t>(pieces.size()) - 1, 3));
    }
  const auto whole = plan_of(pieces, captures);
  REQUIRE(whole.summary().n_passes == 1);
  // The turns are one up to block 1, and so is each question after them.
  REQUIRE(whole.summary().token_layers_to_run == (8 + 6 + 40) * 4 + (6 + 40) * 2);

  constexpr int64_t kMost = 2 * 4 * 4;  // two questions
  const auto plan = plan_of(pieces, captures, {.most_token_layers = kMost});
  REQUIRE(plan.passes().size() >= 8);
  REQUIRE(plan.summary().token_layers_to_run == whole.summary().token_layers_to_run);
  int64_t to_run = 0;
  for (size_t pass = 0; pass < plan.passes().size(); ++pass) {
    int64_t of_pass = 0;
    for (const auto& height : plan.heights(static_cast<int64_t>(pass)))
      for (const auto& slot : height.slots) {
        REQUIRE_FALSE((slot.runs && slot.carried));
        if (slot.runs) of_pass += slot.n_rows;
        // Keys are in the order of the slots: what a slot goes on from stands before it.
        if (slot.parent >= 0)
          REQUIRE(height.slots[static_cast<size_t>(slot.parent)].first_key < slot.first_key);
      }
    if (pass > 0) REQUIRE(of_pass <= kMost + 6 * 4);  // and the second turn once
    to_run += of_pass;
  }
  REQUIRE(to_run == plan.summary().token_layers_to_run);

  // Without room for it, it runs again, as between passes that the budget cuts.
  const auto alone = plan_of(pieces, {captures[0]}).summary().peak_bytes;
  const auto tight = plan_of(pieces, captures, {.memory_budget = alone, .most_token_layers = kMost});
  REQUIRE(tight.summary().peak_bytes <= alone);
  REQUIRE(tight.summary().token_layers_to_run > whole.summary().token_layers_to_run);

  // What each group costs its reader counts, and a pass holds some groups all the same.
  const auto costly = plan_of(pieces, captures, {.most_token_layers = kMost, .group_token_layers = kMost});
  REQUIRE(costly.passes().size() == captures.size());
  const auto grouped =
      plan_of(pieces, captures, {.most_token_layers = kMost, .group_token_layers = kMost, .least_groups = 5});
  REQUIRE(grouped.passes().size() == captures.size() / 5);
}

TEST_CASE("nothing is planned above what is read", "[engine]") {
  const auto prefix = piece(-1, 1, {5, 6, 7}), rest = piece(0, 2, {8, 9});
  const auto cost = [&](std::vector<Capture> captures) {
    return plan_of({prefix, rest}, std::move(captures)).summary().token_layers_to_run;
  };
  REQUIRE(cost({residual(0, 2)}) == 3 * 3);  // and nothing of the rest
  REQUIRE(cost({residual(1, 1)}) == 5 * 2);
  REQUIRE(cost({residual(0, 3), residual(1, 0)}) == 3 * 4 + 2 * 1);
  REQUIRE(cost({residual(0, 0), residual(1, 2)}) ==
          5 * 3);  // the prefix is needed as high as what follows it
  auto cache = Capture{{.what = Capture::What::cache}};
  cache.piece = 1;
  REQUIRE(cost({cache}) == 5 * 4);
  auto attention = Capture{{.what = Capture::What::attention}};
  attention.piece = 1, attention.positions = {1}, attention.layers = {2}, attention.last_key = 5;
  REQUIRE(cost({attention}) == 5 * 3);
}

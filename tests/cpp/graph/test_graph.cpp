#include <catch2/catch.hpp>

#include <set>

#include "introspect/core/error.h"
#include "introspect/graph/graph.h"

#include "tiny_model.h"

using namespace introspect;
using Catch::Matchers::Contains;
using graph::Graph;
using graph::NodeId;
using graph::Read;
using hooks::Intervention;
using hooks::Point;
using introspect::testing::random_tensor;
using introspect::testing::tiny_model;
using Ids = std::vector<int64_t>;
using Ranges = std::vector<std::pair<int64_t, int64_t>>;

namespace {

const Ids kPrefix = {3, 4}, kTurn = {5, 6, 7, 8}, kQuestion = {20, 21};

/// A random direction added to the outputs of blocks [first, last].
Intervention added(int64_t first, int64_t last, double strength = 2.0, uint64_t seed = 1) {
  Intervention out{.strength = strength};
  for (int64_t layer = first; layer <= last; ++layer) out.values[layer] = random_tensor({16}, seed);
  return out;
}

}  // namespace

TEST_CASE("a node is what its content is, whatever tensors hold it", "[graph]") {
  const auto model = tiny_model();
  Graph graph;
  const auto plain = graph.segment(model, kTurn), steered = graph.segment(model, kTurn, {}, {added(1, 2)});
  REQUIRE(graph.segment(model, kTurn) == plain);
  REQUIRE(graph.segment(model, kTurn, {}, {added(1, 2)}) == steered);  // of other memory
  REQUIRE(graph.segment(model, kTurn, {}, {added(2, 2), added(1, 1)}) ==
          steered);  // layer by layer, it is the same
  REQUIRE(graph.size() == 2);

  auto later = added(1, 2), some = added(1, 2), scaled = added(1, 2), elsewhere = added(1, 2);
  later.first_position = 1;
  some.positions = {0, 2};
  scaled.op = "ablate";
  elsewhere.point = Point::kMlpOut;
  std::set<NodeId> nodes = {plain, steered};
  std::set<std::string> hashes = {graph.hash(plain), graph.hash(steered)};
  for (const auto node : {graph.segment(model, {5, 6, 7, 9}), graph.segment(model, {5, 6, 7}),
                          graph.segment(model, kTurn, plain), graph.segment(model, kTurn, steered),
                          graph.segment(tiny_model(1), kTurn), graph.segment(model, kTurn, {}, {added(1, 1)}),
                          graph.segment(model, kTurn, {}, {added(1, 2, 2.5)}),
                          graph.segment(model, kTurn, {}, {added(1, 2, 2.0, /*seed=*/2)}),
                          graph.segment(model, kTurn, {}, {later}), graph.segment(model, kTurn, {}, {some}),
                          graph.segment(model, kTurn, {}, {scaled}),
                          graph.segment(model, kTurn, {}, {elsewhere}), graph.splice(plain, 0, 2, steered),
                          graph.splice(plain, 0, 3, steered), graph.splice(steered, 0, 2, plain)}) {
    REQUIRE(nodes.insert(node).second);
    REQUIRE(hashes.insert(graph.hash(node)).second);
  }
  REQUIRE(graph.size() == static_cast<int64_t>(nodes.size()));
  REQUIRE(graph.length(graph.segment(model, kQuestion, plain)) == 6);
  REQUIRE(graph.tokens(graph.segment(model, kQuestion, plain)) == Ids{5, 6, 7, 8, 20, 21});
}

TEST_CASE("the same content has the same hash in another graph, built in another order", "[graph]") {
  Graph one, other;
  const auto model = tiny_model(), again = tiny_model();
  const auto a = one.segment(model, kTurn, one.segment(model, kPrefix), {added(1, 2)});
  other.segment(again, kQuestion);
  const auto b = other.segment(again, kTurn, other.segment(again, kPrefix), {added(1, 2)});
  REQUIRE(one.hash(a).size() == 64);
  REQUIRE(one.hash(a) == other.hash(b));
}

TEST_CASE("what is written into an operand later is another operand", "[graph]") {
  const auto model = tiny_model();
  const auto as_given = random_tensor({16}, 1);
  const auto read = [&](Graph& graph, NodeId node) {
    graph.read(node);
    return graph.run().back().values;
  };
  Graph untouched;
  const auto expected = read(untouched, untouched.segment(model, kTurn, {}, {{.values = {{1, as_given}}}}));

  Graph graph;
  auto direction = as_given.clone();
  const auto before = graph.segment(model, kTurn, {}, {{.values = {{1, direction}}}});
  direction.mul_(3);
  const auto after = graph.segment(model, kTurn, {}, {{.values = {{1, direction}}}});
  REQUIRE(graph.hash(before) != graph.hash(after));
  REQUIRE(at::equal(read(graph, before), expected));
  REQUIRE(!at::equal(read(graph, after), expected));
}

TEST_CASE("a hash does not depend on the order in which models come", "[graph]") {
  const auto a = tiny_model(0), b = tiny_model(1);
  Graph one, other;
  one.segment(a, kTurn);
  REQUIRE(one.hash(one.segment(b, kTurn)) == other.hash(other.segment(b, kTurn)));
  REQUIRE(one.segment(tiny_model(0), kTurn) != one.segment(a, kTurn));  // the same checkpoint in two places
}

TEST_CASE("equal readings are one", "[graph]") {
  Graph graph;
  const auto node = graph.segment(tiny_model(), kTurn);
  const auto read = graph.read(node);
  REQUIRE(graph.read(node, {.positions = {3}, .layers = {0, 1, 2, 3}}) ==
          read);  // what the defaults stand for
  REQUIRE(graph.read(node, {.positions = {2}}) != read);
  REQUIRE(graph.read(node, {.point = Point::kResidPre}) != read);
  REQUIRE(graph.n_reads() == 3);
}

TEST_CASE("strength 0 is the plain run, bit for bit", "[graph]") {
  const auto model = tiny_model();
  const Intervention unscaled{.op = "scale", .point = Point::kZ, .values = {{1, {}}}, .strength = 1.0};
  const auto residuals = [&](const std::vector<Intervention>& interventions) {
    Graph graph;
    const auto turn = graph.segment(model, kTurn, graph.segment(model, kPrefix), interventions);
    REQUIRE((interventions.empty() || graph.segment(model, kTurn, graph.segment(model, kPrefix)) == turn));
    graph.read(turn, {.positions = {0, 1, 2, 3}});
    return graph.run().at(0).values;
  };
  REQUIRE(at::equal(residuals({added(0, 3, 0.0), unscaled}), residuals({})));
}

TEST_CASE("a segment that cannot be is named before anything runs", "[graph]") {
  const auto model = tiny_model();
  Graph graph;
  const auto node = graph.segment(model, kTurn);
  const auto add = [&](const Ids& tokens, std::optional<NodeId> parent, std::vector<Intervention> i = {}) {
    return graph.segment(model, tokens, parent, i);
  };
  REQUIRE_THROWS_AS(graph.segment(nullptr, kTurn), std::invalid_argument);
  REQUIRE_THROWS_AS(add({}, node), std::invalid_argument);
  REQUIRE_THROWS_AS(add({-1}, node), std::out_of_range);
  REQUIRE_THROWS_WITH(add({5, 40}, node), Contains("0 to 39, got 40"));
  REQUIRE_THROWS_AS(add(kTurn, -1), std::out_of_range);
  REQUIRE_THROWS_WITH(add(kTurn, 1), Contains("0 to 0, got 1"));
  add(Ids(60, 5), node);  // 64 positions are as many as there are
  REQUIRE_THROWS_AS(add(Ids(61, 5), node), ShapeError);
  REQUIRE_THROWS_WITH(add(Ids(61, 5), node), Contains("64 positions, got 65"));

  auto behind = added(1, 1), somewhere = added(1, 1), second = added(1, 1), prompt = added(1, 1);
  behind.first_position = 4;
  somewhere.positions = {0, 4};
  second.rows = {1};
  prompt.text.phase = hooks::Phase::kPrompt;
  REQUIRE_THROWS_AS(add(kTurn, {}, {behind}), std::out_of_range);
  REQUIRE_THROWS_WITH(add(kTurn, {}, {somewhere}), Contains("0 to 3, got 4"));
  REQUIRE_THROWS_AS(add(kTurn, {}, {second}), std::invalid_argument);
  REQUIRE_THROWS_AS(add(kTurn, {}, {prompt}), ConfigError);
  const Intervention final_norm{.point = Point::kLnFinalNormalized, .values = {{-1, at::ones({16})}}};
  REQUIRE_THROWS_WITH(add(kTurn, {}, {final_norm}), Contains("ln_final.hook_normalized"));
  REQUIRE_THROWS_AS(add(kTurn, {}, {final_norm}), ConfigError);
  REQUIRE_THROWS_AS(add(kTurn, {}, {added(4, 4)}), std::out_of_range);  // as hooks::validate does
  REQUIRE_THROWS_AS(add(kTurn, {}, {{.values = {{1, at::ones({15})}}}}), ShapeError);
  REQUIRE_THROWS_AS(add(kTurn, {}, {{.op = "twirl", .values = {{1, at::ones({16})}}}}), ConfigError);

  REQUIRE_THROWS_AS(graph.segment(tiny_model(0, torch::kFloat64, 3), kTurn), ShapeError);
  REQUIRE_THROWS_AS(graph.segment(tiny_model(0, torch::kFloat32), kTurn), ShapeError);
  REQUIRE(graph.size() == 2);  // the turn and its 60 tokens
}

TEST_CASE("a splice that cannot be is named", "[graph]") {
  const auto model = tiny_model();
  Graph graph;
  const auto turn = graph.segment(model, kTurn), longer = graph.segment(model, kQuestion, turn);
  const auto other = graph.segment(model, {5, 6, 9, 8});
  REQUIRE_NOTHROW(graph.splice(turn, 0, 2, other));
  REQUIRE_THROWS_AS(graph.splice(turn, 0, 3, other), std::invalid_argument);
  REQUIRE_THROWS_WITH(graph.splice(turn, 1, 3, other), Contains("positions 1 to 3"));
  REQUIRE_NOTHROW(graph.splice(turn, 3, 4, other));
  for (const auto& [first, last] : Ranges{{-1, 2}, {2, 2}, {3, 2}, {0, 5}})
    REQUIRE_THROWS_AS(graph.splice(turn, first, last, longer), std::out_of_range);
  REQUIRE_THROWS_AS(graph.splice(longer, 0, 5, turn), std::out_of_range);
  REQUIRE_THROWS_AS(graph.splice(turn, 0, 2, 77), std::out_of_range);
  REQUIRE_THROWS_AS(graph.splice(77, 0, 2, turn), std::out_of_range);
}

TEST_CASE("a reading that cannot be is named", "[graph]") {
  const auto model = tiny_model();
  Graph graph;
  REQUIRE_THROWS_WITH(graph.plan(), Contains("nothing to read"));
  const auto turn = graph.segment(model, kTurn);
  REQUIRE_THROWS_AS(graph.run(), std::invalid_argument);
  REQUIRE_THROWS_AS(graph.read(1), std::out_of_range);
  REQUIRE_THROWS_AS(graph.read(turn, {.positions = {}}), std::invalid_argument);
  REQUIRE_THROWS_WITH(graph.read(turn, {.positions = {4}}), Contains("-4 to 3, got 4"));
  REQUIRE_THROWS_AS(graph.read(turn, {.positions = {-5}}), std::out_of_range);
  REQUIRE_THROWS_WITH(graph.read(turn, {.layers = {4}}), Contains("0 to 3, got 4"));
  REQUIRE_THROWS_AS(graph.read(turn, {.layers = {0}, .point = Point::kEmbed}), std::out_of_range);
  REQUIRE_THROWS_AS(graph.read(turn, {.point = Point::kPattern}), std::invalid_argument);
  REQUIRE_THROWS_AS(graph.read(turn, {.point = Point::kQNormScale}), HookError);  // Qwen2 has no such norm
  REQUIRE_THROWS_AS(graph.read(turn, {.point = Point::kUnembedIn}), HookError);
  const auto looks = [&](Ids heads, int64_t first_key, int64_t last_key) {
    Read read{.what = Read::What::attention, .heads = std::move(heads)};
    read.first_key = first_key, read.last_key = last_key;
    return graph.read(turn, read);
  };
  REQUIRE_THROWS_WITH(looks({4}, 0, 4), Contains("0 to 3, got 4"));
  REQUIRE_THROWS_AS(looks({}, -1, 2), std::out_of_range);
  REQUIRE_THROWS_AS(looks({}, 4, 9), std::out_of_range);
  const auto spliced = graph.splice(turn, 0, 2, turn);
  REQUIRE_THROWS_AS(graph.read(spliced), std::invalid_argument);
  REQUIRE(graph.n_reads() == 0);
  REQUIRE_NOTHROW(graph.read(spliced, {.what = Read::What::cache}));
}

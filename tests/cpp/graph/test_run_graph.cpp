#include <catch2/catch.hpp>

#include "introspect/graph/graph.h"

#include "test_operators.h"
#include "tiny_model.h"

using namespace introspect;
using Catch::Matchers::Contains;
using engine::Captured;
using graph::Graph;
using graph::NodeId;
using graph::Read;
using graph::ReadId;
using hooks::Intervention;
using hooks::Point;
using introspect::testing::affine_map;
using introspect::testing::Alone;
using introspect::testing::distance;
using introspect::testing::kFloor;
using introspect::testing::random_tensor;
using introspect::testing::run_alone;
using introspect::testing::tiny_model;
using introspect::testing::transcoder;
using Ids = std::vector<int64_t>;
using Ranges = std::vector<std::pair<int64_t, int64_t>>;

namespace {

constexpr int64_t kLayers = 4;
const Ids kPrefix = {3, 4}, kTurn = {5, 6, 7, 8}, kQuestion = {20, 21};

/// A random direction added to the outputs of blocks [first, last].
Intervention added(int64_t first, int64_t last, double strength = 2.0, uint64_t seed = 1) {
  Intervention out{.strength = strength};
  for (int64_t layer = first; layer <= last; ++layer) out.values[layer] = random_tensor({16}, seed);
  return out;
}

/// The last residual at the segment's last token.
Read last_residual() {
  return {.layers = {kLayers - 1}};
}

/// Tokens times layers that a graph says it runs; what it then runs is as many.
int64_t cost(const Graph& graph, const graph::RunOptions& given = {}) {
  auto options = given;
  const auto plan = graph.plan(options);
  int64_t done = 0, n_calls = 0;
  options.progress = [&](const std::string&, int64_t now, int64_t total) {
    REQUIRE(total == plan.token_layers_to_run);
    ++n_calls;
    done = std::max(done, now);
  };
  graph.run(options);
  REQUIRE(n_calls > 0);
  REQUIRE(done == plan.token_layers_to_run);
  return plan.token_layers_to_run;
}

/// Bytes of the least budget that a graph can be run in.
int64_t smallest_budget(const Graph& graph) {
  const auto fits = [&](int64_t budget) {
    try {
      graph.plan({.memory_budget = budget});
      return true;
    } catch (const std::invalid_argument&) {
      return false;
    }
  };
  int64_t low = 0, high = int64_t{1} << 24;
  while (high - low > 1) {
    const auto middle = (low + high) / 2;
    (fits(middle) ? high : low) = middle;
  }
  return high;
}

/// A graph with every kind of segment and reading, and what the same is without a plan.
struct Mixed {
  Graph graph;
  std::map<ReadId, torch::Tensor> values;
  std::map<ReadId, cache::KVCache> caches;

  Mixed() {
    const auto model = tiny_model(0), other = tiny_model(1);
    const auto begun = run_alone(*model, kPrefix);
    const auto prefix = graph.segment(model, kPrefix);

    auto late = added(1, 3);
    late.first_position = 1, late.last_position = 3;
    auto few = added(0, 0, -1.5, 2);
    few.positions = {0, 3};
    Intervention head{.op = "scale", .point = Point::kZ, .values = {{1, {}}}, .strength = -2.0, .heads = {2}};
    Intervention ablated{.op = "ablate", .point = Point::kMlpOut, .values = {{2, random_tensor({16}, 3)}}};
    Intervention mean{.op = "mean", .point = Point::kResidPre, .values = {{2, {}}}, .last_position = 3};
    Intervention stored{
        .op = "replace", .point = Point::kEmbed, .values = {{-1, random_tensor({1, 4, 16}, 4)}}};
    // Operands by name, and sources: of the changed block, of blocks below, of between blocks.
    const auto own = transcoder(Point::kMlpIn, {}, Point::kMlpOut, {1, 2});
    const auto cross = transcoder(Point::kMlpIn, 0, Point::kMlpOut, {0, 2, 3});
    const auto across = transcoder(Point::kResidPost, 0, Point::kResidPre, {2, 3});
    auto from_start = transcoder(Point::kEmbed, {}, Point::kResidPost, {3});
    from_start.positions = {1, 3};
    const auto mapped = affine_map(Point::kResidMid, 1);
    const std::vector<std::vector<Intervention>> all = {{},
                                                        {added(1, 2)},
                                                        {late},
                                                        {few, late},
                                                        {head},
                                                        {mean},
                                                        {ablated, few},
                                                        {stored, head},
                                                        {own},
                                                        {cross, late},
                                                        {across, few},
                                                        {from_start},
                                                        {mapped, cross}};
    for (const auto& interventions : all) {
      const auto node = graph.segment(model, kTurn, prefix, interventions);
      const auto turn = run_alone(*model, kTurn, interventions, begun.cache);
      add(node, turn, {.positions = {-1, 0, 2, 0}, .layers = {3, 0, 1}});
      add(node, turn, {.positions = {1}, .point = Point::kAttnOut});
      ask(model, node, turn.cache);
    }
    // The same turn in a longer segment, of which the beginning is shared.
    const Ids longer = {5, 6, 7, 8, 9, 10, 11};
    add(graph.segment(model, longer, prefix), run_alone(*model, longer, {}, begun.cache),
        {.positions = {5, -1}});
    // Another model after this one's keys, and this one after the other's.
    const auto foreign = graph.segment(other, kTurn, prefix, {added(2, 2)});
    const auto of_other = run_alone(*other, kTurn, {added(2, 2)}, begun.cache);
    add(foreign, of_other, {.positions = {0, 1, 2, 3}});
    ask(model, foreign, of_other.cache);
    // Positions 3 and 4 of the steered turn in the plain one, and the plain one's in a steered one.
    const auto plain = graph.segment(model, kTurn, prefix),
               steered = graph.segment(model, kTurn, prefix, {late});
    const auto of_plain = run_alone(*model, kTurn, {}, begun.cache).cache,
               of_steered = run_alone(*model, kTurn, {late}, begun.cache).cache;
    ask(model, graph.splice(plain, 3, 5, steered), of_plain.splice(3, 5, of_steered));
    ask(model, graph.splice(steered, 0, 4, plain), of_steered.splice(0, 4, of_plain));
  }

  void add(NodeId node, const Alone& alone, const Read& read) {
    auto layers = read.layers, positions = read.positions;
    if (layers.empty()) layers = {0, 1, 2, 3};
    for (auto& position : positions)
      if (position < 0) position += static_cast<int64_t>(graph.tokens(node).size() - kPrefix.size());
    values[graph.read(node, read)] = alone.at(read.point, layers, positions);
  }

  /// A question after `before`, and everything that can be read of it.
  void ask(const graph::ModelPtr& model, NodeId before, const cache::KVCache& given) {
    const auto node = graph.segment(model, kQuestion, before);
    const auto alone = run_alone(*model, kQuestion, {}, given);
    values[graph.read(node)] = alone.at(Point::kResidPost, {0, 1, 2, 3}, {1});
    values[graph.read(node, {.positions = {0}, .layers = {2, 1}, .point = Point::kMlpPost})] =
        alone.at(Point::kMlpPost, {2, 1}, {0});
    Read looks{.what = Read::What::attention, .positions = {1, 0}, .layers = {3, 0}, .heads = {3, 1}};
    looks.first_key = 1, looks.last_key = 8;
    values[graph.read(node, looks)] = alone.attention({3, 0}, {3, 1}, {1, 0}, 1, 8);
    values[graph.read(node, {.what = Read::What::attention, .layers = {2}})] =
        alone.attention({2}, {0, 1, 2, 3}, {1}, 0, graph.length(node));
    caches.emplace(graph.read(node, {.what = Read::What::cache}), alone.cache);
  }

  void require(ReadId read, const Captured& captured) const {
    INFO("reading " << read);
    if (const auto cache = caches.find(read); cache != caches.end()) {
      REQUIRE(captured.cache.has_value());
      REQUIRE(distance(*captured.cache, cache->second) < kFloor);
    } else {
      REQUIRE(distance(captured.values, values.at(read)) < kFloor);
    }
  }
};

}  // namespace

// What is shared

TEST_CASE("a prefix runs once, whatever follows it", "[graph]") {
  const auto model = tiny_model();
  Graph graph;
  const auto prefix = graph.segment(model, {1, 2, 3, 4, 5});
  for (const auto& rest : {Ids{6, 7, 8}, Ids{9, 10}})
    graph.read(graph.segment(model, rest, prefix), last_residual());
  REQUIRE(graph.plan().token_layers_asked == (8 + 7) * kLayers);
  REQUIRE(cost(graph) == (5 + 3 + 2) * kLayers);

  Graph apart;  // the same sequences as segments that only begin alike
  for (const auto& whole : {Ids{1, 2, 3, 4, 5, 6, 7, 8}, Ids{1, 2, 3, 4, 5, 9, 10}})
    apart.read(apart.segment(model, whole), last_residual());
  REQUIRE(cost(apart) == (5 + 3 + 2) * kLayers);
}

TEST_CASE("ranges that start at one layer share what is steered alike", "[graph]") {
  const auto model = tiny_model();
  Graph graph;
  const auto prefix = graph.segment(model, kPrefix);
  for (const auto& [first, last] : Ranges{{1, 1}, {1, 2}, {2, 2}}) {
    const auto turn = graph.segment(model, kTurn, prefix, {added(first, last)});
    graph.read(graph.segment(model, kQuestion, turn), last_residual());
  }
  // Blocks 0 and 1 see no steering. Before block 2 one state is steered after block 1 and one is not; before block 3
  // all three differ.
  const int64_t states = 1 + 1 + 2 + 3;
  REQUIRE(graph.plan().token_layers_asked == 3 * 8 * kLayers);
  REQUIRE(cost(graph) == 2 * kLayers + states * (4 + 2));
}

TEST_CASE("an intervention costs what stands after it and above it", "[graph]") {
  const auto model = tiny_model();
  const auto with = [&](int64_t first, int64_t last) {
    auto i = added(1, 1);
    i.first_position = first, i.last_position = last;
    Graph graph;
    for (const auto& interventions : {std::vector<Intervention>{}, {i}})
      graph.read(graph.segment(model, kTurn, {}, interventions), last_residual());
    return cost(graph);
  };
  REQUIRE(with(2, 4) == 4 * kLayers + 2 * 2);  // two tokens, in blocks 2 and 3
  REQUIRE(with(0, 1) == 4 * kLayers + 4 * 2);  // all see the first one
  REQUIRE(with(3, 4) == 4 * kLayers + 1 * 2);
}

TEST_CASE("nothing runs above the last layer read, nor what is not read", "[graph]") {
  const auto model = tiny_model();
  const auto of = [&](const Read& read) {
    Graph graph;
    const auto turn = graph.segment(model, kTurn);
    graph.read(turn, read);
    graph.segment(model, kQuestion, turn);                         // never read
    graph.segment(model, kTurn, {}, {added(0, 3)});                // nor this
    graph.splice(turn, 0, 2, graph.segment(model, {5, 6, 1, 1}));  // nor this
    return cost(graph);
  };
  REQUIRE(of({.layers = {0}}) == 4 * 1);
  REQUIRE(of({.layers = {2, 1}}) == 4 * 3);
  REQUIRE(of({.layers = {2}, .point = Point::kResidPre}) == 4 * 2);  // what comes out of block 1
  REQUIRE(of({.layers = {1}, .point = Point::kZ}) == 4 * 2);
  REQUIRE(of({.what = Read::What::attention, .layers = {2}}) == 4 * 3);
  REQUIRE(of({.what = Read::What::cache}) == 4 * kLayers);

  Graph graph;  // steering above the layer read makes no difference that anybody sees
  for (const auto& i : {added(1, 1), added(2, 2), added(3, 3)})
    graph.read(graph.segment(model, kTurn, {}, {i}), {.layers = {0}});
  REQUIRE(cost(graph) == 4 * 1);
}

TEST_CASE("a splice runs nothing by itself, and one's own keys and values change nothing, bit for bit",
          "[graph]") {
  const auto model = tiny_model();
  const auto residuals = [&](bool spliced) {
    Graph graph;
    auto turn = graph.segment(model, kTurn, graph.segment(model, kPrefix), {added(1, 2)});
    if (spliced) turn = graph.splice(turn, 1, 5, turn);
    graph.read(graph.segment(model, kQuestion, turn), {.positions = {0, 1}});
    REQUIRE(cost(graph) == (2 + 4 + 2) * kLayers);
    return graph.run().at(0).values;
  };
  REQUIRE(at::equal(residuals(true), residuals(false)));

  Graph graph;
  const auto plain = graph.segment(model, kTurn), steered = graph.segment(model, kTurn, {}, {added(1, 1)});
  graph.read(graph.segment(model, kQuestion, graph.splice(plain, 1, 2, steered)), last_residual());
  // Both turns (the steered one anew in blocks 2 and 3) and the question.
  REQUIRE(cost(graph) == 4 * kLayers + 4 * 2 + 2 * kLayers);
}

// Readings

TEST_CASE("every reading is that of its sequence run by itself, under any budget", "[graph]") {
  const Mixed mixed;
  const auto least = smallest_budget(mixed.graph);
  const auto budget = GENERATE_COPY(int64_t{least}, 3 * least, int64_t{1} << 30);
  const graph::RunOptions options{.memory_budget = budget};
  const auto plan = mixed.graph.plan(options);
  REQUIRE(plan.peak_bytes <= budget);
  REQUIRE((plan.n_passes > 1) == (budget <= 3 * least));
  const auto readings = mixed.graph.run(options);
  REQUIRE(readings.size() == mixed.values.size() + mixed.caches.size());
  for (size_t read = 0; read < readings.size(); ++read)
    mixed.require(static_cast<ReadId>(read), readings[read]);
  cost(mixed.graph, options);
}

TEST_CASE("passes that are kept short leave to the next what both need: no reading and no cost changes",
          "[graph]") {
  const Mixed mixed;
  const auto whole = mixed.graph.plan();
  REQUIRE(whole.n_passes == 1);
  const auto least = smallest_budget(mixed.graph);
  for (const int64_t most : {int64_t{1}, int64_t{40}, whole.token_layers_to_run / 2}) {
    for (const int64_t budget : {least, 2 * least, int64_t{1} << 30}) {
      const graph::RunOptions options{.memory_budget = budget, .most_token_layers = most};
      const auto plan = mixed.graph.plan(options);
      REQUIRE(plan.n_passes > 1);
      REQUIRE(plan.peak_bytes <= budget);
      // Where there is room little runs twice: what is read inside a block, which runs anew in each pass that reads it.
      // With a limit of 1 each of these readings is a pass of its own.
      const auto allowed = most == 1 ? 2 * whole.token_layers_to_run : whole.token_layers_to_run * 5 / 4;
      if (budget > 2 * least) REQUIRE(plan.token_layers_to_run <= allowed);
      const auto readings = mixed.graph.run(options);
      for (size_t read = 0; read < readings.size(); ++read)
        mixed.require(static_cast<ReadId>(read), readings[read]);
      cost(mixed.graph, options);
    }
  }
}

TEST_CASE("layers are read in the order given, also one twice", "[graph]") {
  const auto model = tiny_model();
  Graph graph;
  const auto turn = graph.segment(model, kTurn);
  const auto alone = run_alone(*model, kTurn);
  const auto residuals = graph.read(turn, {.positions = {3, 3}, .layers = {2, 0, 2}});
  const auto inner = graph.read(turn, {.layers = {1, 1}, .point = Point::kQ});
  const auto looks = graph.read(turn, {.what = Read::What::attention, .layers = {3, 3}, .heads = {1, 1}});
  const auto readings = graph.run();
  const auto of = [&](ReadId read) { return readings[static_cast<size_t>(read)].values; };
  REQUIRE(distance(of(residuals), alone.at(Point::kResidPost, {2, 0, 2}, {3, 3})) < kFloor);
  REQUIRE(distance(of(inner), alone.at(Point::kQ, {1, 1}, {3})) < kFloor);
  REQUIRE(distance(of(looks), alone.attention({3, 3}, {1, 1}, {3}, 0, 4)) < kFloor);
}

TEST_CASE("a cache that was handed out can be gone on from, and leaves others as they are", "[graph]") {
  const auto model = tiny_model();
  Graph graph;
  const auto turn = graph.segment(model, kTurn);
  graph.read(turn, {.what = Read::What::cache});
  graph.read(graph.segment(model, kQuestion, turn), {.what = Read::What::cache});
  auto readings = graph.run();
  const auto longer = run_alone(*model, kQuestion, {}, *readings[0].cache);
  REQUIRE(distance(longer.cache, *readings[1].cache) < kFloor);
  readings[1].cache->truncate(1);
  run_alone(*model, kTurn, {}, *readings[1].cache);
  REQUIRE(distance(*readings[0].cache, run_alone(*model, kTurn).cache) < kFloor);
}

TEST_CASE("a budget too small for a reading is named, with what it would take", "[graph]") {
  const Mixed mixed;
  const auto least = smallest_budget(mixed.graph);
  for (const int64_t budget : {int64_t{0}, int64_t{100}, least - 1}) {
    REQUIRE_THROWS_AS(mixed.graph.plan({.memory_budget = budget}), std::invalid_argument);
    REQUIRE_THROWS_WITH(mixed.graph.run({.memory_budget = budget}),
                        Contains("budget of ") && Contains("bytes, got " + std::to_string(budget)));
  }
  // One reading asks for what it takes, and no more.
  Graph graph;
  graph.read(graph.segment(tiny_model(), kTurn));
  REQUIRE_THROWS_WITH(graph.run({.memory_budget = 100}),
                      Contains("reading 0 ") && Contains(std::to_string(smallest_budget(graph)) + " bytes"));
}

TEST_CASE("an exception from a callback ends the run, and what was handed out before is right", "[graph]") {
  const Mixed mixed;
  const graph::RunOptions options{.memory_budget = smallest_budget(mixed.graph)};
  const auto n_passes = mixed.graph.plan(options).n_passes;
  REQUIRE(n_passes > 3);
  struct Stop {};
  std::map<ReadId, Captured> got;
  int64_t n_calls = 0;
  const auto take = [&](std::vector<std::pair<ReadId, Captured>> readings) {
    if (++n_calls == 3) throw Stop();
    for (auto& [read, captured] : readings) REQUIRE(got.emplace(read, std::move(captured)).second);
  };
  REQUIRE_THROWS_AS(mixed.graph.run(options, take), Stop);
  REQUIRE(n_calls == 3);
  REQUIRE(!got.empty());
  REQUIRE(static_cast<int64_t>(got.size()) < mixed.graph.n_reads());
  for (const auto& [read, captured] : got) mixed.require(read, captured);

  auto stopped = options;
  stopped.progress = [](const std::string&, int64_t, int64_t) { throw Stop(); };
  REQUIRE_THROWS_AS(mixed.graph.run(stopped), Stop);

  got.clear();
  n_calls = 10;  // the graph runs again
  mixed.graph.run(options, take);
  REQUIRE(n_calls == 10 + n_passes);
  REQUIRE(static_cast<int64_t>(got.size()) == mixed.graph.n_reads());
  for (const auto& [read, captured] : got) mixed.require(read, captured);
}

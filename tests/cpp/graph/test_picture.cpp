#include <catch2/catch.hpp>

#include <algorithm>
#include <map>

#include "introspect/graph/graph.h"

#include "tiny_model.h"

using namespace introspect;
using Catch::Matchers::Contains;
using graph::Graph;
using introspect::testing::random_tensor;
using introspect::testing::tiny_model;
using Ids = std::vector<int64_t>;

namespace {

const Ids kPrefix = {3, 4}, kTurn = {5, 6, 7, 8}, kQuestion = {20, 21};

/// A random direction added to the outputs of blocks [first, last].
hooks::Intervention added(int64_t first, int64_t last, double strength = 2.0, uint64_t seed = 1) {
  hooks::Intervention out{.strength = strength};
  for (int64_t layer = first; layer <= last; ++layer) out.values[layer] = random_tensor({16}, seed);
  return out;
}

/// Element names of an XML document without comments and declarations. Fails if it is not well formed.
std::vector<std::string> elements_of(const std::string& xml) {
  std::vector<std::string> names, open;
  for (size_t at = 0; at < xml.size();) {
    if (xml[at] == '&') {
      const auto entity = xml.substr(at, xml.find(';', at) + 1 - at);
      INFO(entity);
      REQUIRE((entity == "&amp;" || entity == "&lt;" || entity == "&gt;" || entity == "&quot;"));
    }
    if (xml[at] != '<') {
      ++at;
      continue;
    }
    const auto end = xml.find('>', at);
    REQUIRE(end != std::string::npos);
    auto tag = xml.substr(at + 1, end - at - 1);
    INFO(tag);
    REQUIRE(tag.find('<') == std::string::npos);
    REQUIRE(std::count(tag.begin(), tag.end(), '"') % 2 == 0);
    const auto name = tag.substr(tag[0] == '/' ? 1 : 0, tag.find_first_of(" /", 1) - (tag[0] == '/' ? 1 : 0));
    if (tag[0] == '/') {
      REQUIRE(!open.empty());
      REQUIRE(open.back() == name);
      open.pop_back();
    } else {
      names.push_back(name);
      if (tag.back() != '/') open.push_back(name);
    }
    at = end + 1;
  }
  REQUIRE(open.empty());
  return names;
}

/// The tiny model under another name.
graph::ModelPtr named(const std::string& name) {
  const auto model = tiny_model(1);
  auto cfg = model->cfg();
  cfg.model_name = name;
  return std::make_shared<models::Model>(cfg, model->weights(), std::nullopt, std::nullopt, name);
}

}  // namespace

TEST_CASE("the picture is well formed, with a box a node and a line to each parent and source", "[graph]") {
  const auto model = tiny_model();
  Graph graph;
  REQUIRE(elements_of(graph.svg()) == std::vector<std::string>{"svg"});
  const auto prefix = graph.segment(model, kPrefix);
  const auto plain = graph.segment(model, kTurn, prefix),
             steered = graph.segment(model, kTurn, prefix, {added(1, 2, 2.5), added(3, 3, 2.5)});
  graph.splice(plain, 2, 5, steered);
  graph.segment(named("a<b & \"c\""), {5}, plain);
  graph.segment(model, kQuestion, steered);
  graph.read(plain);
  const auto svg = graph.svg();
  const auto names = elements_of(svg);
  REQUIRE(names.front() == "svg");
  REQUIRE(std::count(names.begin(), names.end(), "rect") == graph.size());
  REQUIRE(std::count(names.begin(), names.end(), "path") == 5 + 1);
  for (const char* words :
       {"2 tokens", "4 tokens", "1 token, a&lt;b &amp; &quot;c", "splice 2-4", "add 2.5 at 1", "read"})
    REQUIRE_THAT(svg, Contains(words));
}

TEST_CASE("a long name is cut at twelve bytes, but not within a letter", "[graph]") {
  const auto model = tiny_model();
  const std::map<size_t, size_t> lengths = {{9, 12}, {10, 10}, {11, 11}, {12, 12}, {13, 12}};
  for (const auto& [n, length] : lengths) {
    Graph graph;
    graph.segment(model, kTurn);
    graph.segment(named(std::string(n, 'x') + "\u6f22\u5b57"), kTurn);  // two letters of three bytes each
    const auto svg = graph.svg();
    const auto at = svg.find(std::string(9, 'x'));
    REQUIRE(svg.find('<', at) - at == length);
  }
}

TEST_CASE("a picture of more than 400 nodes is refused", "[graph]") {
  const auto model = tiny_model();
  Graph graph;
  for (int64_t n = 0; n < 400; ++n) graph.segment(model, {n % 40, n / 40});
  const auto names = elements_of(graph.svg());
  REQUIRE(std::count(names.begin(), names.end(), "rect") == 400);
  graph.segment(model, kTurn);
  REQUIRE_THROWS_AS(graph.svg(), std::invalid_argument);
  REQUIRE_THROWS_WITH(graph.svg(), Contains("at most 400 nodes, got 401"));
}

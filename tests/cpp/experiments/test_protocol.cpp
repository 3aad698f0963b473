#include <string>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "introspect/core/error.h"
#include "introspect/experiments/protocol.h"
#include "introspect/experiments/run.h"

using namespace introspect;
using experiments::LayerRange;
using experiments::Protocol;
using Json = nlohmann::json;

namespace {

Json good() {
  return Json::parse(R"({
    "name": "mine",
    "turns": [{"role": "system", "content": ""}, {"role": "user", "content": "Hello."},
              {"role": "assistant", "content": "{ }"}, {"role": "user", "content": "Well?"},
              {"role": "assistant", "content": "It is"}],
    "injected": [1, 2],
    "controls": {"turns": [{"role": "user", "content": "Hm. $QUESTION"}], "injected": [0], "questions": ["Is it?"]}
  })");
}

}  // namespace

TEST_CASE("a protocol is read, and read back from its own JSON", "[experiments][protocol]") {
  const auto protocol = Protocol::parse(good().dump());
  CHECK(protocol.name == "mine");
  CHECK(protocol.conversation.turns.size() == 5);
  CHECK(protocol.conversation.injected == std::vector<int64_t>{1, 2});
  CHECK(protocol.read == experiments::Read::yes_no);
  CHECK(protocol.yes_token == " yes");
  CHECK(protocol.own_question() == "Well?");
  CHECK(protocol.ask("Why?").turns[0].content == "Hm. Why?");
  const auto again = Protocol::parse(protocol.to_json());
  CHECK(again.to_json() == protocol.to_json());
  CHECK(again.hash() == protocol.hash());
  auto other = good();
  other["injected"] = {1};
  CHECK(Protocol::parse(other.dump()).hash() != protocol.hash());
}

TEST_CASE("a mistake in a protocol is named with its place", "[experiments][protocol]") {
  const auto [pointer, value, place] = GENERATE(table<std::string, std::string, std::string>({
      {"/name", R"("")", "name"},
      {"/turns", "[]", "turns"},
      {"/turns/2/role", R"("robot")", "turns[2].role"},
      {"/turns/1/content", "7", "turns[1].content"},
      {"/turns/1/text", R"("x")", "turns[1]"},
      {"/injected", "[]", "injected"},
      {"/injected/1", "5", "injected[1]"},
      {"/injected/0", "-1", "injected[0]"},
      {"/injected/1", "1", "injected[1]"},
      {"/injected/0", "0.5", "injected[0]"},
      {"/read", R"("all")", "read"},
      {"/steer_generation", "1", "steer_generation"},
      {"/yes_token", R"("")", "yes_token"},
      {"/no_token", R"(" yes")", "yes_token"},
      {"/sampling", R"({"temperature": -1})", "sampling"},
      {"/sampling", R"({"top_p": 0})", "sampling"},
      {"/strenght", "20", "strenght"},
      {"/controls", R"("controls.json")", "controls"},
      {"/controls/questions", "[]", "controls.questions"},
      {"/controls/injected", "[1]", "controls.injected[0]"},
      {"/controls/turns/0/content", R"("no place for it")", "$QUESTION"},
  }));
  auto json = good();
  json[Json::json_pointer(pointer)] = Json::parse(value);
  CAPTURE(json.dump());
  CHECK_THROWS_AS(Protocol::parse(json.dump()), ConfigError);
  CHECK_THROWS_WITH(Protocol::parse(json.dump()), Catch::Contains(place));
}

TEST_CASE("what is not a protocol at all is refused", "[experiments][protocol]") {
  for (const auto* const text : {"", "[]", "{", "{}", "null"})
    CHECK_THROWS_AS(Protocol::parse(text), ConfigError);
  CHECK_THROWS_AS(Protocol::load("/no/such/file.json"), IoError);
  auto json = good();
  json.erase("controls");
  CHECK_THROWS_AS(Protocol::parse(json.dump()).ask("Why?"), ConfigError);
}

TEST_CASE("fractions of the depth are rounded to blocks", "[experiments][layers]") {
  CHECK(LayerRange::fractions(21 / 64.0, 42 / 64.0).resolve(64) == std::pair<int64_t, int64_t>(21, 42));
  CHECK(LayerRange::fractions(0.33, 0.66).resolve(24) == std::pair<int64_t, int64_t>(8, 16));
  CHECK(LayerRange::fractions(0, 1).resolve(24) == std::pair<int64_t, int64_t>(0, 23));
  CHECK(LayerRange::blocks(0, 23).resolve(24) == std::pair<int64_t, int64_t>(0, 23));
  for (const auto& range :
       {LayerRange::fractions(0.5, 0.4), LayerRange::fractions(-0.1, 0.5), LayerRange::fractions(0.5, 1.1),
        LayerRange::blocks(-1, 3), LayerRange::blocks(4, 3), LayerRange::blocks(3, 24),
        LayerRange::fractions(0.0 / 0.0, 1.0)})
    CHECK_THROWS_AS(range.resolve(24), std::out_of_range);
}

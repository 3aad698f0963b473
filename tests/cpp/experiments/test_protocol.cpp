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
  CHECK(protocol.ask("Why?", "given").turns.size() == 1);
  const auto own = protocol.ask("Why?", experiments::kOwnConversation);
  REQUIRE(own.turns.size() == 5);
  CHECK(own.turns[3].content == "Hm. Why?");
  CHECK(own.turns[4].content == "It is");
  CHECK(own.injected == std::vector<int64_t>{1, 2});
  CHECK_THROWS_AS(protocol.ask("Why?", "elsewhere"), ConfigError);
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
      {"/controls/question", R"("no place for it")", "controls.question"},
      {"/controls/asked_in", R"("elsewhere")", "controls.asked_in"},
      {"/controls/name", R"("own")", "controls.name"},
      {"/paraphrases", R"(["Is it?", "Is it?"])", "paraphrases[1]"},
      {"/paraphrases", R"([{"question": "Is it?", "name": "own"}])", "paraphrases[0]"},
      {"/asks_own_question", "false", "asks_own_question"},
  }));
  auto json = good();
  json[Json::json_pointer(pointer)] = Json::parse(value);
  CAPTURE(json.dump());
  CHECK_THROWS_AS(Protocol::parse(json.dump()), ConfigError);
  CHECK_THROWS_WITH(Protocol::parse(json.dump()), Catch::Contains(place));
}

TEST_CASE("control questions take the place of the protocol's own question", "[experiments][protocol]") {
  auto json = good();
  json["controls"] = {{"questions", {"Is it?"}}};
  const auto bare = Protocol::parse(json.dump());
  CHECK(bare.ask("Is it?", experiments::kOwnConversation).turns[3].content == "Is it?");
  CHECK_THROWS_AS(bare.ask("Is it?"), ConfigError);
  CHECK(Protocol::parse(bare.to_json()).hash() == bare.hash());
  json["controls"]["question"] = "$QUESTION Yes or no?";
  const auto worded = Protocol::parse(json.dump());
  CHECK(worded.ask("Is it?", experiments::kOwnConversation).turns[3].content == "Is it? Yes or no?");
  CHECK(Protocol::parse(worded.to_json()).hash() == worded.hash());

  const auto elsewhere = worded.with_controls_in(Protocol::parse(good().dump()));
  CHECK(elsewhere.control_name == "mine");
  CHECK(elsewhere.ask("Is it?", "mine").turns[3].content == "Is it? Yes or no?");
  CHECK(elsewhere.is_own("mine"));
  json["turns"][1]["content"] = "Good morning.";
  CHECK_FALSE(Protocol::parse(json.dump()).with_controls_in(worded).is_own("mine"));

  json["injected"] = {{{"turn", 3}, {"text", "Well?"}}};
  CHECK_THROWS_WITH(Protocol::parse(json.dump()).ask("Is it?", experiments::kOwnConversation),
                    Catch::Contains("message 3"));
  json["turns"] = {{{"role", "assistant"}, {"content", "I say."}}};
  json["injected"] = {0};
  CHECK_THROWS_WITH(Protocol::parse(json.dump()).ask("Is it?", experiments::kOwnConversation),
                    Catch::Contains("user message"));
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

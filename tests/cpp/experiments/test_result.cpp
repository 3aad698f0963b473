#include <cmath>
#include <limits>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "introspect/core/error.h"
#include "introspect/experiments/result.h"

using introspect::experiments::Reading;
using introspect::experiments::Result;
using introspect::experiments::Row;

TEST_CASE("a reading survives its JSON to the last bit", "[experiments][result]") {
  const Reading reading{
      -1.0 / 3, 0.1, 1e-300, {{" cat", 8251, -2.0 / 7, 12}}, "I'm thinking about \xE7\x8C\xAB"};
  const auto back = Reading::from_json(reading.to_json());
  CHECK(back.log_odds == reading.log_odds);
  CHECK(back.p_yes == reading.p_yes);
  CHECK(back.p_no == reading.p_no);
  REQUIRE(back.tokens.size() == 1);
  CHECK(back.tokens[0].token == " cat");
  CHECK(back.tokens[0].id == 8251);
  CHECK(back.tokens[0].log_prob == -2.0 / 7);
  CHECK(back.tokens[0].rank == 12);
  CHECK(back.text == reading.text);
}

TEST_CASE("a reading that is not a number is null in JSON and NaN again", "[experiments][result]") {
  Reading reading;
  reading.log_odds = std::numeric_limits<double>::infinity();
  const auto json = nlohmann::json::parse(reading.to_json());
  CHECK(json["log_odds"].is_null());
  CHECK(std::isnan(Reading::from_json(reading.to_json()).log_odds));
  CHECK_THROWS_AS(Reading::from_json("{}"), introspect::IoError);
  CHECK_THROWS_AS(Reading::from_json("cat"), introspect::IoError);
}

TEST_CASE("part of a UTF-8 sequence in a token is replaced", "[experiments][result]") {
  Reading reading;
  reading.tokens.push_back({"\xE7", 1, -1.0, 1});
  CHECK(Reading::from_json(reading.to_json()).tokens[0].token == "\xEF\xBF\xBD");
}

TEST_CASE("a result is schema 1", "[experiments][result]") {
  Result result;
  result.model.name = "m";
  result.settings.seed = 7;
  result.rows.push_back({"cat", 20, 8, 16, "Are you a human?", "control", "null", 3, {}, {}});
  const auto json = nlohmann::json::parse(result.to_json());
  CHECK(json["schema"] == 1);
  CHECK(json["model"]["name"] == "m");
  CHECK(json["settings"]["seed"] == 7);
  const auto& row = json["rows"][0];
  CHECK(row["concept"] == "cat");
  CHECK(row["strength"] == 20.0);
  CHECK(row["first_layer"] == 8);
  CHECK(row["last_layer"] == 16);
  CHECK(row["question_kind"] == "control");
  CHECK(row["kind"] == "null");
  CHECK(row["null_index"] == 3);
  CHECK(row["base"]["log_odds"] == 0.0);
  CHECK_FALSE(row["injected"].contains("tokens"));
  CHECK_FALSE(row["injected"].contains("text"));
}

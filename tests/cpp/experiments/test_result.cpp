#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "introspect/core/error.h"
#include "introspect/experiments/result.h"

using introspect::experiments::Reading;
using introspect::experiments::Result;
using introspect::experiments::Value;

namespace {

Value token(const std::string& text, int64_t id, double log_prob, int64_t rank) {
  return Value::Fields{{"token", text}, {"id", id}, {"log_prob", log_prob}, {"rank", rank}};
}

const Value& first_token(const Reading& reading) {
  return reading.values.at("tokens").get_if<Value::List>()->at(0);
}

}  // namespace

TEST_CASE("a reading survives its JSON to the last bit", "[experiments][result]") {
  const std::string text = "I'm thinking about \xE7\x8C\xAB";
  const Reading reading{
      -1.0 / 3, 0.1, 1e-300, {{"tokens", Value::List{token(" cat", 8251, -2.0 / 7, 12)}}, {"text", text}}};
  const auto back = Reading::from_json(reading.to_json());
  CHECK(back.log_odds == reading.log_odds);
  CHECK(back.p_yes == reading.p_yes);
  CHECK(back.p_no == reading.p_no);
  REQUIRE(back.values.at("tokens").size() == 1);
  CHECK(first_token(back) == token(" cat", 8251, -2.0 / 7, 12));
  CHECK(back.values.at("text") == Value(text));
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
  reading.values["tokens"] = Value::List{token("\xE7", 1, -1.0, 1)};
  CHECK(*first_token(Reading::from_json(reading.to_json())).find("token") == Value("\xEF\xBF\xBD"));
}

TEST_CASE("a result is schema 1", "[experiments][result]") {
  Result result;
  result.model.name = "m";
  result.settings.seed = 7;
  result.rows.push_back({{{"cat", 20, 8, 16, 3}, {"Are you a human?", "control"}, "random"}, {}, {}});
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
  CHECK(row["kind"] == "random");
  CHECK(row["null_index"] == 3);
  CHECK(row["base"]["log_odds"] == 0.0);
  CHECK_FALSE(row["injected"].contains("tokens"));
  CHECK_FALSE(row["injected"].contains("text"));
}

TEST_CASE("a setting leaves the format where the mass of yes and no falls", "[experiments][result]") {
  using introspect::experiments::leaves_format;
  const auto [base, injected, leaves] = GENERATE(table<double, double, bool>({
      {0.9, 0.9, false},
      {0.9, 0.46, false},  // a little more than half
      {0.9, 0.44, true},
      {0.15, 0.09, true},   // more than half, but nearly nothing
      {0.05, 0.04, false},  // it was hardly there before
      {0.05, 0.02, true},
      {0.9, 3e-7, true},
  }));
  CAPTURE(base, injected);
  CHECK(leaves_format({0.0, base / 3, 2 * base / 3}, {0.0, injected / 2, injected / 2}) == leaves);
}

TEST_CASE("where the answers are others than yes and no, the mass is theirs", "[experiments][result]") {
  Reading reading{0.0, 0.001, 0.001};
  CHECK(reading.mass() == Approx(0.002));
  reading.values["answers"] = Value::List{token("A", 1, std::log(0.5), 1), token("B", 2, std::log(0.25), 2)};
  CHECK(reading.mass() == Approx(0.75));
}

TEST_CASE("a reading with a number that is not finite has failed", "[experiments][result]") {
  CHECK(Reading{1.0, 0.5, 0.5}.is_finite());
  CHECK_FALSE(Reading{std::nan(""), 0.5, 0.5}.is_finite());
  CHECK_FALSE(Reading{1.0, std::numeric_limits<double>::infinity(), 0.5}.is_finite());
}

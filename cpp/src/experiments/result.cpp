#include "introspect/experiments/result.h"

#include <cmath>

#include <nlohmann/json.hpp>

#include "introspect/core/check.h"

namespace introspect::experiments {
namespace {

using Json = nlohmann::ordered_json;

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

double parse_number(const Json& json) {
  return json.is_null() ? std::nan("") : json.get<double>();
}

Json reading_json(const Reading& reading) {
  Json out{{"log_odds", number(reading.log_odds)},
           {"p_yes", number(reading.p_yes)},
           {"p_no", number(reading.p_no)}};
  for (const auto& token : reading.tokens)
    out["tokens"].push_back(Json{{"token", token.token},
                                 {"id", token.id},
                                 {"log_prob", number(token.log_prob)},
                                 {"rank", token.rank}});
  if (reading.text) out["text"] = *reading.text;
  return out;
}

// A token may hold part of a UTF-8 sequence; JSON text may not.
std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

std::string Reading::to_json() const {
  return dump(reading_json(*this));
}

Reading Reading::from_json(const std::string& text) {
  try {
    const auto json = Json::parse(text);
    Reading out;
    out.log_odds = parse_number(json.at("log_odds"));
    out.p_yes = parse_number(json.at("p_yes"));
    out.p_no = parse_number(json.at("p_no"));
    for (const auto& token : json.value("tokens", Json::array()))
      out.tokens.push_back({token.at("token").get<std::string>(), token.at("id").get<int64_t>(),
                            parse_number(token.at("log_prob")), token.at("rank").get<int64_t>()});
    if (json.contains("text")) out.text = json.at("text").get<std::string>();
    return out;
  } catch (const Json::exception& problem) {
    throw IoError(concat("Reading::from_json: not a reading: ", problem.what()));
  }
}

std::string Result::to_json() const {
  Json rows_json = Json::array();
  for (const auto& row : rows)
    rows_json.push_back({{"concept", row.concept_name},
                         {"strength", number(row.strength)},
                         {"first_layer", row.first_layer},
                         {"last_layer", row.last_layer},
                         {"question", row.question},
                         {"question_kind", row.question_kind},
                         {"kind", row.kind},
                         {"null_index", row.null_index},
                         {"base", reading_json(row.base)},
                         {"injected", reading_json(row.injected)}});
  const Json json{
      {"schema", 1},
      {"model",
       {{"name", model.name},
        {"hash", model.hash},
        {"architecture", model.architecture},
        {"n_layers", model.n_layers},
        {"dtype", model.dtype},
        {"device", model.device}}},
      {"protocol",
       {{"name", protocol.name},
        {"hash", protocol.hash},
        {"read", protocol.read},
        {"yes_token", protocol.yes_token},
        {"no_token", protocol.no_token}}},
      {"settings",
       {{"seed", settings.seed},
        {"nulls", settings.nulls},
        {"strength_unit", settings.strength_unit},
        {"threads", settings.threads},
        {"versions", {{"introspect", settings.introspect_version}, {"torch", settings.torch_version}}}}},
      {"warnings", warnings},
      {"rows", rows_json}};
  return dump(json);
}

}  // namespace introspect::experiments

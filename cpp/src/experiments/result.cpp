#include "introspect/experiments/result.h"

#include <cmath>

#include <nlohmann/json.hpp>

#include "core/json.h"
#include "introspect/core/check.h"

namespace introspect::experiments {
namespace {

using Json = nlohmann::ordered_json;
using Field = JsonField<IoError>;

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

double parse_number(const Field& field) {
  return field.is_null() ? std::nan("") : field.number();
}

/// Of a list that may be left out, each element by `parse`.
template <typename T>
std::vector<T> parse_list(const Field& field, T (*parse)(const Field&)) {
  std::vector<T> out;
  for (size_t i = 0, n = field.list(); i < n; ++i) out.push_back(parse(field.at(i)));
  return out;
}

Json numbers(const std::vector<double>& values) {
  Json out = Json::array();
  for (const double value : values) out.push_back(number(value));
  return out;
}

std::vector<double> parse_numbers(const Field& field) {
  return parse_list(field, parse_number);
}

Json table(const std::vector<std::vector<double>>& rows) {
  Json out = Json::array();
  for (const auto& row : rows) out.push_back(numbers(row));
  return out;
}

Json tokens_json(const std::vector<TokenReading>& tokens) {
  Json out = Json::array();
  for (const auto& token : tokens)
    out.push_back({{"token", token.token},
                   {"id", token.id},
                   {"log_prob", number(token.log_prob)},
                   {"rank", token.rank}});
  return out;
}

TokenReading parse_token(const Field& token) {
  return {token.at("token").text(), token.at("id").integer(), parse_number(token.at("log_prob")),
          token.at("rank").integer()};
}

Json changes_json(const std::vector<TokenChange>& changes) {
  Json out = Json::array();
  for (const auto& [token, id, change] : changes)
    out.push_back({{"token", token}, {"id", id}, {"change", number(change)}});
  return out;
}

TokenChange parse_change(const Field& one) {
  return {one.at("token").text(), one.at("id").integer(), parse_number(one.at("change"))};
}

Json reading_json(const Reading& reading) {
  Json out{{"log_odds", number(reading.log_odds)},
           {"p_yes", number(reading.p_yes)},
           {"p_no", number(reading.p_no)}};
  if (!reading.tokens.empty()) out["tokens"] = tokens_json(reading.tokens);
  if (!reading.answers.empty()) out["answers"] = tokens_json(reading.answers);
  if (reading.text) out["text"] = *reading.text;
  if (reading.set_log_odds) out["set_log_odds"] = number(*reading.set_log_odds);
  if (reading.lens)
    out["lens"] = {{"log_odds", numbers(reading.lens->log_odds)},
                   {"p_yes", numbers(reading.lens->p_yes)},
                   {"p_no", numbers(reading.lens->p_no)},
                   {"log_probs", table(reading.lens->log_probs)}};
  if (!reading.attention.empty()) out["attention"] = table(reading.attention);
  if (reading.entropy) out["entropy"] = number(*reading.entropy);
  if (reading.kl) out["kl"] = number(*reading.kl);
  if (!reading.raised.empty()) out["raised"] = changes_json(reading.raised);
  if (!reading.lowered.empty()) out["lowered"] = changes_json(reading.lowered);
  for (const auto& [name, values] : reading.projections)
    for (const auto& [layer, value] : values) out["projections"][name][std::to_string(layer)] = number(value);
  if (!reading.continuations.empty()) out["continuations"] = numbers(reading.continuations);
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
  constexpr auto kWho = "Reading::from_json: ";
  const auto json = parse_json<IoError>(text, "Reading::from_json");
  const Field field(json, kWho);
  const auto if_there = [&](const char* key, const auto& read) {
    if (field.object().has(key)) read(field.at(key));
  };
  Reading out;
  out.log_odds = parse_number(field.at("log_odds"));
  out.p_yes = parse_number(field.at("p_yes"));
  out.p_no = parse_number(field.at("p_no"));
  if_there("tokens", [&](const Field& f) { out.tokens = parse_list(f, parse_token); });
  if_there("answers", [&](const Field& f) { out.answers = parse_list(f, parse_token); });
  if_there("text", [&](const Field& f) { out.text = f.text(); });
  if_there("set_log_odds", [&](const Field& f) { out.set_log_odds = parse_number(f); });
  if_there("lens", [&](const Field& f) {
    out.lens = Lens{parse_numbers(f.at("log_odds")), parse_numbers(f.at("p_yes")),
                    parse_numbers(f.at("p_no")), parse_list(f.at("log_probs"), parse_numbers)};
  });
  if_there("attention", [&](const Field& f) { out.attention = parse_list(f, parse_numbers); });
  if_there("entropy", [&](const Field& f) { out.entropy = parse_number(f); });
  if_there("kl", [&](const Field& f) { out.kl = parse_number(f); });
  if_there("raised", [&](const Field& f) { out.raised = parse_list(f, parse_change); });
  if_there("lowered", [&](const Field& f) { out.lowered = parse_list(f, parse_change); });
  if_there("projections", [&](const Field& f) {
    f.for_each_field([&](const std::string& name, const Field& values) {
      values.for_each_field([&](const std::string& layer, const Field& value) {
        out.projections[name][parse_key<IoError>(layer, kWho, "a layer of projections")] =
            parse_number(value);
      });
    });
  });
  if_there("continuations", [&](const Field& f) { out.continuations = parse_numbers(f); });
  return out;
}

std::string Result::to_json() const {
  Json rows_json = Json::array();
  for (const auto& row : rows) {
    Json one{{"concept", row.concept_name},
             {"strength", number(row.strength)},
             {"first_layer", row.first_layer},
             {"last_layer", row.last_layer},
             {"question", row.question},
             {"question_kind", row.question_kind},
             {"kind", row.kind},
             {"null_index", row.null_index}};
    if (row.paraphrase >= 0) one["paraphrase"] = row.paraphrase;
    if (row.place >= 0) one["place"] = row.place;
    if (row.part_first != 0.0 || row.part_last != 1.0) {
      one["part_first"] = row.part_first;
      one["part_last"] = row.part_last;
    }
    one["base"] = reading_json(row.base);
    one["injected"] = reading_json(row.injected);
    rows_json.push_back(std::move(one));
  }
  Json json{
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
  if (protocol.inject != "vector") json["protocol"]["inject"] = protocol.inject;
  if (!protocol.answers.empty()) json["protocol"]["answers"] = protocol.answers;
  if (!settings.continuations.empty()) json["settings"]["continuations"] = settings.continuations;
  if (settings.control_filter)
    json["settings"]["control_filter"] = {{"below", number(*settings.control_filter)},
                                          {"asked", settings.controls_asked},
                                          {"kept", settings.controls_kept}};
  return dump(json);
}

}  // namespace introspect::experiments

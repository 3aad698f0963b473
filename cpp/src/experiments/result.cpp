#include "introspect/experiments/result.h"

#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/experiments/readouts.h"

#include "experiments/readouts/library.h"
#include "experiments/value_json.h"

namespace introspect::experiments {
namespace {

using Json = nlohmann::ordered_json;

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

/// The fields of readouts in the order of their JSON.
std::vector<std::string> field_order() {
  std::vector<std::string> out;
  for (const auto& readout : readouts())
    out.insert(out.end(), readout->fields.begin(), readout->fields.end());
  return out;
}

Json reading_json(const Reading& reading, const std::vector<std::string>& order) {
  Json out{{"log_odds", number(reading.log_odds)},
           {"p_yes", number(reading.p_yes)},
           {"p_no", number(reading.p_no)}};
  for (const auto& field : order)
    if (const auto found = reading.values.find(field); found != reading.values.end())
      out[field] = json_of(found->second);
  for (const auto& [field, value] : reading.values)
    if (!out.contains(field)) out[field] = json_of(value);
  return out;
}

/// What says nothing of most results: a paraphrase, a group, a place and a part where there is none.
bool is_left_out(const Setting& setting, const std::string& name) {
  if (name == "paraphrase") return setting.paraphrase.empty();
  if (name == "group") return setting.group.empty();
  if (name == "place") return setting.place < 0;
  const bool is_whole = setting.part_first == 0.0 && setting.part_last == 1.0;
  return is_whole && (name == "part_first" || name == "part_last");
}

}  // namespace

bool Reading::is_finite() const {
  return std::isfinite(log_odds) && std::isfinite(p_yes) && std::isfinite(p_no);
}

double Reading::mass() const {
  const auto answers = values.find("answers");
  if (answers == values.end()) return p_yes + p_no;
  double out = 0;
  if (const auto* const tokens = answers->second.get_if<Value::List>())
    for (const auto& token : *tokens)
      if (const auto* const log_prob = token.find("log_prob")) out += std::exp(log_prob->number());
  return out;
}

bool leaves_format(const Reading& base, const Reading& injected) {
  const auto before = base.mass(), after = injected.mass();
  return after < kKeptMass * before || (after < kLeastMass && before >= kLeastMass);
}

std::string Reading::to_json() const {
  return dump(reading_json(*this, field_order()));
}

Reading Reading::from_json(const std::string& text) {
  constexpr auto kWho = "Reading::from_json";
  const auto json = parse_ordered(text, kWho);
  check<IoError>(json.is_object(), kWho, ": must be an object");
  Reading out;
  for (const auto& [field, number] :
       {std::pair("log_odds", &out.log_odds), {"p_yes", &out.p_yes}, {"p_no", &out.p_no}}) {
    const auto found = json.find(field);
    check<IoError>(found != json.end(), kWho, ": ", field, " is missing");
    const auto value = value_of(*found);
    check<IoError>(value.is_number(), kWho, ": ", problem_of_number(value, field));
    *number = value.number();
  }
  for (const auto& [field, value] : json.items())
    if (field != "log_odds" && field != "p_yes" && field != "p_no") out.values[field] = value_of(value);
  for (const auto& readout : readouts())
    for (const auto& field : readout->fields) {
      const auto found = out.values.find(field);
      if (found == out.values.end() || !readout->check) continue;
      const auto problem = readout->check(field, found->second);
      check<IoError>(problem.empty(), kWho, ": ", problem);
    }
  return out;
}

std::string Result::to_json() const {
  const auto order = field_order();
  Json rows_json = Json::array();
  for (const auto& row : rows) {
    Json one = Json::object();
    for_each_field(row, [&](const std::string& name, const auto& value) {
      if (!is_left_out(row, name)) one[name] = value;
      if (name == "asked_in") one["leaves_format"] = row.leaves_format;
    });
    for (const auto& [side, reading] : {std::pair{"base", &row.base}, {"injected", &row.injected}}) {
      one[side] = reading_json(*reading, order);
      one[side]["mass"] = number(reading->p_yes + reading->p_no);
    }
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
        {"controls", settings.controls},
        {"threads", settings.threads},
        {"versions", {{"introspect", settings.introspect_version}, {"torch", settings.torch_version}}}}},
      {"warnings", warnings},
      {"rows", rows_json}};
  if (!settings.residual_norm.empty()) json["settings"]["residual_norm"] = settings.residual_norm;
  if (protocol.inject != "vector") json["protocol"]["inject"] = protocol.inject;
  if (!protocol.answers.empty()) json["protocol"]["answers"] = protocol.answers;
  for (const auto& [name, value] : settings.of_readouts) json["settings"][name] = json_of(value);
  if (settings.control_filter)
    json["settings"]["control_filter"] = {{"below", number(*settings.control_filter)},
                                          {"asked", settings.controls_asked},
                                          {"kept", settings.controls_kept}};
  return dump(json);
}

}  // namespace introspect::experiments

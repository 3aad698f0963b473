#include "introspect/experiments/value.h"

#include <algorithm>
#include <cmath>

#include "core/ordered_json.h"
#include "introspect/core/check.h"

#include "experiments/value_json.h"

namespace introspect::experiments {
namespace {

using Json = nlohmann::ordered_json;

Json number_json(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

struct Writer {
  Json operator()(double number) const { return number_json(number); }
  Json operator()(const Value::Numbers& numbers) const {
    Json out = Json::array();
    for (const double number : numbers) out.push_back(number_json(number));
    return out;
  }
  Json operator()(const Value::List& list) const {
    Json out = Json::array();
    for (const auto& one : list) out.push_back(json_of(one));
    return out;
  }
  Json operator()(const Value::Fields& fields) const {
    Json out = Json::object();
    for (const auto& [name, value] : fields) out[name] = json_of(value);
    return out;
  }
  template <typename Plain>
  Json operator()(const Plain& plain) const {
    return plain;
  }
};

double as_number(const Json& json) {
  return json.is_null() ? std::nan("") : json.get<double>();
}

}  // namespace

Json json_of(const Value& value) {
  return std::visit(Writer{}, value.held);
}

Value value_of(const Json& json) {
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number() || json.is_null()) return as_number(json);
  if (json.is_string()) return json.get<std::string>();
  if (json.is_object()) {
    Value::Fields fields;
    for (const auto& [name, value] : json.items()) fields.emplace_back(name, value_of(value));
    return fields;
  }
  if (!json.empty() && std::all_of(json.begin(), json.end(),
                                   [](const Json& one) { return one.is_number_float() || one.is_null(); })) {
    Value::Numbers numbers;
    for (const auto& one : json) numbers.push_back(as_number(one));
    return numbers;
  }
  Value::List list;
  for (const auto& one : json) list.push_back(value_of(one));
  return list;
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

const Value* Value::find(const std::string& field) const {
  const auto* const fields = get_if<Fields>();
  if (!fields) return nullptr;
  const auto found =
      std::find_if(fields->begin(), fields->end(), [&](const auto& one) { return one.first == field; });
  return found == fields->end() ? nullptr : &found->second;
}

int64_t Value::size() const {
  const auto count = [](const auto* of) { return of ? static_cast<int64_t>(of->size()) : 0; };
  return count(get_if<Numbers>()) + count(get_if<List>()) + count(get_if<Fields>());
}

double Value::number() const {
  if (const auto* const whole = get_if<int64_t>()) return static_cast<double>(*whole);
  const auto* const real = get_if<double>();
  return real ? *real : std::nan("");
}

std::string Value::to_json() const {
  return dump(json_of(*this));
}

Value Value::from_json(const std::string& text) {
  return value_of(parse_ordered(text, "Value::from_json"));
}

Json parse_ordered(const std::string& text, const std::string& who) {
  Json parsed;
  const auto problem = parse_json(text, JsonRules{}, parsed);
  check<IoError>(problem.empty(), who, ": ", problem);
  return parsed;
}

}  // namespace introspect::experiments

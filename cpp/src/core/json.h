#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "introspect/core/check.h"

#include "core/excerpt.h"

namespace introspect {

/// What a JSON text may hold. Every text that this library parses comes from a file or a caller it cannot trust.
struct JsonRules {
  size_t max_depth = 128;  // copying, printing and freeing a value all need a stack as deep as the value
  size_t max_bytes = size_t{64} << 20;  // a value takes some twenty times its text
  bool numbers_of_python =
      false;  // NaN, Infinity and -Infinity are numbers, as Python's json writes and reads them

  /// Whether a key may stand twice in an object of this depth (the text's own is 1), of which the last holds; null: no.
  bool (*may_repeat)(size_t depth, std::string_view key) = nullptr;
};

/// Parses one JSON text, by these rules and RFC 8259 otherwise: nothing may stand before or after the value, neither a
/// byte order mark nor a NUL byte with more after it. Returns what is wrong with the text, or nothing.
std::string parse_json(std::string_view text, const JsonRules& rules, nlohmann::json& parsed);

/// Likewise. Throws `E`, with `who` in front of the reason.
template <typename E>
nlohmann::json parse_json(std::string_view text, std::string_view who, const JsonRules& rules = {}) {
  nlohmann::json parsed;
  const auto problem = parse_json(text, rules, parsed);
  check<E>(problem.empty(), who, ": ", problem);
  return parsed;
}

/// A JSON value for a message, never as long as the value: "text", 2.5, a list of 3, an object of 2 fields.
std::string describe(const nlohmann::json& value);

/// What an error of the parser's own says, without its number: "type must be string, but is number".
std::string plain_reason(const nlohmann::json::exception& error);

/// A value inside a parsed text together with its place there, so that every complaint names it. Throws `E`.
/// It refers to the parsed value, which must outlive it.
template <typename E>
class JsonField {
 public:
  /// `who` stands before the place in a message: "protocol 'x': ", say. An empty `place` is the text as a whole.
  JsonField(const nlohmann::json& value, std::string who, std::string place = {})
      : value_(&value), who_(std::move(who)), place_(std::move(place)) {}

  const nlohmann::json& value() const { return *value_; }
  template <typename... Parts>
  void require(bool ok, const Parts&... parts) const {
    if (!ok) [[unlikely]]
      throw E(concat(who_, place_, place_.empty() ? "" : " ", parts...));
  }

  bool is_null() const { return value_->is_null(); }
  bool is_object() const { return value_->is_object(); }
  bool has(const std::string& key) const { return value_->is_object() && value_->contains(key); }
  JsonField at(const std::string& key) const {
    object();
    const auto found = value_->find(key);
    auto place = place_.empty() ? key : place_ + "." + key;
    if (found == value_->end()) throw E(concat(who_, place, " is missing"));
    return {*found, who_, std::move(place)};
  }
  JsonField at(size_t index) const {
    require(index < list(), "must have more than ", index, " elements, got ", value_->size());
    return {(*value_)[index], who_, concat(place_, "[", index, "]")};
  }

  const JsonField& object() const {
    require(value_->is_object(), "must be an object, got ", describe(*value_));
    return *this;
  }
  const JsonField& object(const std::set<std::string>& known) const {
    object();
    for (const auto& [key, value] : value_->items())
      require(known.count(key) > 0, "has an unknown field ", excerpt(key));
    return *this;
  }
  /// Calls visit(key, field) for the fields of an object.
  template <typename Visit>
  void for_each_field(const Visit& visit) const {
    object();
    for (const auto& [key, value] : value_->items()) {
      const auto name = key.size() <= 100 ? key : excerpt(key);
      visit(key, JsonField{value, who_, place_.empty() ? name : place_ + "." + name});
    }
  }

  size_t list() const {
    require(value_->is_array(), "must be a list, got ", describe(*value_));
    return value_->size();
  }
  size_t some_list() const {
    require(list() > 0, "must not be empty");
    return list();
  }
  std::string text() const {
    require(value_->is_string(), "must be text, got ", describe(*value_));
    return value_->get<std::string>();
  }
  std::string some_text() const {
    require(!text().empty(), "must not be empty");
    return text();
  }
  bool boolean() const {
    require(value_->is_boolean(), "must be true or false, got ", describe(*value_));
    return value_->get<bool>();
  }
  int64_t integer() const {
    const bool fits = value_->is_number_integer() &&
                      (!value_->is_number_unsigned() ||
                       value_->get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()});
    require(fits, "must be a whole number, got ", describe(*value_));
    return value_->get<int64_t>();
  }
  double number() const {
    require(value_->is_number() && std::isfinite(value_->get<double>()), "must be a number, got ",
            describe(*value_));
    return value_->get<double>();
  }
  std::vector<int64_t> integers() const {
    std::vector<int64_t> out(list());
    for (size_t i = 0; i < out.size(); ++i) out[i] = at(i).integer();
    return out;
  }
  std::vector<double> numbers() const {
    std::vector<double> out(list());
    for (size_t i = 0; i < out.size(); ++i) out[i] = at(i).number();
    return out;
  }

 private:
  const nlohmann::json* value_;
  std::string who_, place_;
};

/// The whole number that a key of an object spells ("12"). Throws `E` with `who` and `what` it is for anything else.
template <typename E>
int64_t parse_key(const std::string& key, std::string_view who, std::string_view what) {
  int64_t number = 0;
  const char* const last = key.data() + key.size();
  const auto [end, error] = std::from_chars(key.data(), last, number);
  if (error != std::errc() || end != last)
    throw E(concat(who, what, " must be a whole number, got ", excerpt(key)));
  return number;
}

}  // namespace introspect

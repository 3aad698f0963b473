#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "introspect/export.h"

namespace introspect::experiments {

/// A JSON value: what a readout reads, and what it is asked for with.
///
/// Null is the number NaN, and a number that is not finite is null in JSON. Lists of numbers are held as such.
struct Value {
  using Numbers = std::vector<double>;
  using List = std::vector<Value>;
  using Fields = std::vector<std::pair<std::string, Value>>;  ///< of an object, in their order

  std::variant<bool, int64_t, double, std::string, Numbers, List, Fields> held;

  Value() : held(std::numeric_limits<double>::quiet_NaN()) {}
  Value(bool flag) : held(flag) {}
  Value(int number) : held(int64_t{number}) {}
  Value(int64_t number) : held(number) {}
  Value(double number) : held(number) {}
  Value(const char* text) : held(std::string(text)) {}
  Value(std::string text) : held(std::move(text)) {}
  Value(Numbers numbers) : held(std::move(numbers)) {}
  Value(List list) : held(std::move(list)) {}
  Value(Fields fields) : held(std::move(fields)) {}

  template <typename T>
  const T* get_if() const {
    return std::get_if<T>(&held);
  }
  /// A field of an object, or nullptr.
  INTROSPECT_EXPORT const Value* find(const std::string& field) const;
  /// The number of a list's elements, or of an object's fields; 0 of anything else.
  INTROSPECT_EXPORT int64_t size() const;
  bool is_number() const { return get_if<int64_t>() || get_if<double>(); }
  /// NaN if this is none.
  INTROSPECT_EXPORT double number() const;

  INTROSPECT_EXPORT std::string to_json() const;
  /// Throws IoError for text that is not JSON.
  INTROSPECT_EXPORT static Value from_json(const std::string& json);

  bool operator==(const Value&) const = default;
};

/// What is read besides the log-odds: the parameters of readouts, by their names. Those that are switched off are not in
/// it.
using Readouts = std::map<std::string, Value>;

}  // namespace introspect::experiments

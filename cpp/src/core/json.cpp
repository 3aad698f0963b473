#include "core/json.h"

#include <algorithm>
#include <optional>
#include <type_traits>

#include "core/ordered_json.h"

namespace introspect {
namespace {

using nlohmann::json;

/// A number that Python writes and JSON does not have, as the n-th string of a text it has been written into.
struct NumberOfPython {
  size_t n_strings_before;
  double value;
};

/// Puts a string of the same length in place of each such number, since the parser's places are told to the reader.
std::vector<NumberOfPython> replace_numbers_of_python(std::string& text) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::pair<std::string_view, double> kNumbers[] = {
      {"NaN", std::nan("")}, {"Infinity", kInfinity}, {"-Infinity", -kInfinity}};
  std::vector<NumberOfPython> found;
  size_t n_strings = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') {
      ++n_strings;
      for (++i; i < text.size() && text[i] != '"'; ++i)
        if (text[i] == '\\') ++i;
      continue;
    }
    for (const auto& [word, value] : kNumbers) {
      if (text.compare(i, word.size(), word) != 0) continue;
      found.push_back({n_strings++, value});
      text[i] = text[i + word.size() - 1] = '"';
      std::fill_n(text.begin() + static_cast<std::ptrdiff_t>(i) + 1, word.size() - 2, '-');
      i += word.size() - 1;
      break;
    }
  }
  return found;
}

/// Of an object whose fields keep their order: each one is looked up among those before it.
constexpr size_t kMaxOrderedFields = 10'000;

/// Builds the value from the parser's events, and stops at what the rules forbid.
template <typename Json>
class Builder : public nlohmann::json_sax<Json> {
 public:
  Builder(const JsonRules& rules, std::vector<NumberOfPython> numbers, Json& root)
      : rules_(rules), numbers_(std::move(numbers)), root_(root) {}

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(int64_t value) override { return put(value); }
  bool number_unsigned(uint64_t value) override { return put(value); }
  bool number_float(double value, const std::string& /*spelling*/) override { return put(value); }
  bool binary(typename Json::binary_t& /*value*/) override { return false; }  // JSON text has none
  bool string(std::string& value) override {
    const auto number = take_number();
    return number ? put(*number) : put(std::move(value));
  }

  bool start_object(size_t /*size*/) override { return open(Json::object()); }
  bool start_array(size_t /*size*/) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    if (take_number()) {
      problem = "must be JSON, has a number for a key";
      return false;
    }
    auto& fields = open_.back()->template get_ref<typename Json::object_t&>();
    const auto [place, is_new] = fields.emplace(name, nullptr);
    const bool may_repeat = rules_.may_repeat && rules_.may_repeat(open_.size(), name);
    if (!is_new && !may_repeat) problem = concat("JSON has the key ", excerpt(name), " twice");
    if (!std::is_same_v<Json, json> && fields.size() > kMaxOrderedFields)
      problem = concat("JSON must have at most ", kMaxOrderedFields, " fields in an object here");
    field_ = &place->second;
    return problem.empty();
  }

  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& error) override {
    constexpr int kNumberOutOfRange = 406;
    // The parser's own words may quote bytes that are not UTF-8.
    problem = error.id == kNumberOutOfRange
                  ? concat("JSON holds a number out of range, which ends at byte ", position)
                  : concat("must be JSON, is not at byte ", position);
    return false;
  }

  std::string problem;

 private:
  std::optional<double> take_number() {
    if (next_ == numbers_.size() || numbers_[next_].n_strings_before != n_strings_++) return std::nullopt;
    return numbers_[next_++].value;
  }

  Json& place(Json value) {
    if (open_.empty()) return root_ = std::move(value);
    if (open_.back()->is_array()) {
      auto& elements = open_.back()->template get_ref<typename Json::array_t&>();
      elements.push_back(std::move(value));
      return elements.back();
    }
    return *field_ = std::move(value);
  }
  template <typename T>
  bool put(T&& value) {
    place(Json(std::forward<T>(value)));
    return true;
  }
  bool open(Json value) {
    if (open_.size() >= rules_.max_depth) {
      problem = concat("JSON must not nest deeper than ", rules_.max_depth, " levels");
      return false;
    }
    open_.push_back(&place(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const JsonRules& rules_;
  std::vector<NumberOfPython> numbers_;
  size_t next_ = 0, n_strings_ = 0;
  Json& root_;
  std::vector<Json*> open_;  // an element of an open array stays where it is until it is closed
  Json* field_ = nullptr;
};

template <typename Json>
std::string parse(std::string_view text, const JsonRules& rules, Json& parsed) {
  if (text.size() > rules.max_bytes)
    return concat("JSON must be at most ", rules.max_bytes, " bytes, got ", text.size());
  if (text.starts_with("\xEF\xBB\xBF")) return "must be JSON, begins with a byte order mark";
  // The parser takes a NUL for the end of the text.
  if (const auto nul = text.find('\0'); nul != std::string_view::npos)
    return concat("must be JSON, has a NUL at byte ", nul + 1);
  std::vector<NumberOfPython> numbers;
  std::string replaced;
  if (rules.numbers_of_python &&
      (text.find("NaN") != std::string_view::npos || text.find("Infinity") != std::string_view::npos)) {
    replaced = text;
    numbers = replace_numbers_of_python(replaced);
    text = replaced;
  }
  Builder<Json> builder(rules, std::move(numbers), parsed);
  if (!Json::sax_parse(text.begin(), text.end(), &builder) && builder.problem.empty())
    builder.problem = "must be JSON";
  return builder.problem;
}

}  // namespace

std::string parse_json(std::string_view text, const JsonRules& rules, json& parsed) {
  return parse(text, rules, parsed);
}

std::string parse_json(std::string_view text, const JsonRules& rules, nlohmann::ordered_json& parsed) {
  return parse(text, rules, parsed);
}

std::string describe(const json& value) {
  const auto count = [&](const char* what, const char* one) {
    return concat(what, value.size(), " ", one, value.size() == 1 ? "" : "s");
  };
  if (value.is_array()) return count("a list of ", "element");
  if (value.is_object()) return count("an object of ", "field");
  if (value.is_string()) return excerpt(value.get_ref<const std::string&>());
  if (value.is_number_float() && !std::isfinite(value.get<double>()))
    return std::isnan(value.get<double>()) ? "NaN" : value.get<double>() > 0 ? "Infinity" : "-Infinity";
  return value.dump();
}

std::string plain_reason(const json::exception& error) {
  const std::string_view text = error.what();
  const auto end = text.find("] ");
  return std::string(end == std::string_view::npos ? text : text.substr(end + 2));
}

}  // namespace introspect

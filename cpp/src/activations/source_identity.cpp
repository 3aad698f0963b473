#include "activations/source_identity.h"

#include <nlohmann/json.hpp>

#include "introspect/core/check.h"

#include "core/json.h"

namespace introspect::activations {

bool tells_rows(const std::string& state) {
  const auto json = nlohmann::json::parse(state, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.contains("of");
}

void check_same_rows(const std::string& who, const std::string& kept, const std::string& now) {
  if (!tells_rows(now)) return;
  const auto mine = nlohmann::json::parse(now);
  const auto json = parse_json<IoError>(kept, who);
  const auto found = json.is_object() ? json.find("of") : json.end();
  check<IoError>(
      json.is_object() && found != json.end() && found->is_object(), who,
      ": does not say of which model, precision, device and options its rows are, as it was begun by "
      "an earlier version: what is there can be read, but begin anew in another place to have more");
  const auto same = [&](const std::string& key, const nlohmann::json& is, const nlohmann::json& asked) {
    check<IoError>(is == asked, who, ": is of other rows, with the ", key, " ", describe(is), ", and ",
                   describe(asked),
                   " came: go on with what it was begun with, or begin anew in another place");
  };
  const nlohmann::json none;
  for (const auto& [key, value] : mine.at("of").items())
    same(key, found->contains(key) ? found->at(key) : none, value);
  for (const auto& [key, value] : found->items())
    if (!mine.at("of").contains(key)) same(excerpt(key), value, none);
}

}  // namespace introspect::activations

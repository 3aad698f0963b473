#include "io/json.h"

#include <string>
#include <unordered_set>
#include <vector>

#include "introspect/core/check.h"

namespace introspect::io {

nlohmann::json parse_json_object(std::string_view text, const std::filesystem::path& path, int max_depth) {
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::unordered_set<std::string>> keys_at(static_cast<size_t>(max_depth) +
                                                       1);  // open object's, by depth
  const auto watch = [&](int depth, Event event, nlohmann::json& parsed) {
    if (event == Event::object_start || event == Event::array_start) {
      check<IoError>(depth < max_depth, path.string(), ": JSON must not nest deeper than ", max_depth,
                     " levels");
      keys_at[static_cast<size_t>(depth) + 1].clear();
    } else if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      check<IoError>(keys_at[static_cast<size_t>(depth)].insert(key).second, path.string(),
                     ": JSON has the key '", key, "' twice");
    }
    return true;
  };
  nlohmann::json parsed;
  try {
    parsed = nlohmann::json::parse(text.begin(), text.end(), watch);
  } catch (const nlohmann::json::parse_error& error) {
    // Its own text may quote bytes that are not UTF-8.
    throw IoError(concat(path.string(), ": must be JSON, is not at byte ", error.byte));
  } catch (const nlohmann::json::exception&) {
    throw IoError(concat(path.string(), ": JSON holds a number out of range"));
  }
  check<IoError>(parsed.is_object(), path.string(), ": JSON must be an object, got ", parsed.type_name());
  return parsed;
}

}  // namespace introspect::io

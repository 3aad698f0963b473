#include "io/json_file.h"

#include "introspect/io/file.h"

namespace introspect::io {

nlohmann::json read_json(const std::filesystem::path& path) {
  return parse_json<IoError>(read_text(path), path.string());
}

nlohmann::json read_json_object(const std::filesystem::path& path) {
  return parse_json_object(read_text(path), path);
}

nlohmann::json parse_json_object(std::string_view text, const std::filesystem::path& path,
                                 const JsonRules& rules) {
  auto parsed = parse_json<IoError>(text, path.string(), rules);
  check<IoError>(parsed.is_object(), path.string(), ": JSON must be an object, got ", describe(parsed));
  return parsed;
}

}  // namespace introspect::io

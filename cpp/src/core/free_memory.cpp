#include "core/free_memory.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace introspect {

namespace {

namespace fs = std::filesystem;

using Bytes = std::optional<int64_t>;

Bytes smaller(Bytes a, Bytes b) {
  return a && b ? std::min(a, b) : (a ? a : b);
}

/// The number that is all of a file's text; none for another text, such as "max", and for a number below 0.
Bytes number_in(const fs::path& path) {
  std::ifstream file(path);
  int64_t n = 0;
  if (!(file >> n) || n < 0) return std::nullopt;
  return (file >> std::ws).eof() ? Bytes(n) : std::nullopt;
}

/// The number of the line that begins with the wanted name, in a file whose lines are "name number" or "name number unit".
Bytes number_of(const fs::path& path, std::string_view wanted) {
  std::ifstream file(path);
  std::string name, unit;
  for (int64_t n = 0; file >> name >> n; std::getline(file, unit))
    if (name == wanted && n >= 0) return n;
  return std::nullopt;
}

/// How a version of control groups tells of memory.
struct Version {
  std::string_view file_system;
  std::string_view controller;           // of version 1; version 2 has one hierarchy for all
  std::array<std::string_view, 2> most;  // "": no second limit
  std::string_view used;
  std::string_view unused_pages;  // in memory.stat, with those of the groups below
};

constexpr std::array<Version, 2> kVersions = {
    {{"cgroup2", "", {"memory.max", "memory.high"}, "memory.current", "inactive_file"},
     {"cgroup", "memory", {"memory.limit_in_bytes", ""}, "memory.usage_in_bytes", "total_inactive_file"}}};

Bytes room_in(const fs::path& group, const Version& version) {
  constexpr int64_t kNoLimit = int64_t{1} << 60;  // version 1 writes about 2^63 for none
  Bytes most;
  for (const auto& name : version.most)
    if (!name.empty()) most = smaller(most, number_in(group / name));
  const auto used = number_in(group / version.used);
  if (!used || most.value_or(kNoLimit) >= kNoLimit) return std::nullopt;
  const auto unused = number_of(group / "memory.stat", version.unused_pages).value_or(0);
  return std::max<int64_t>(0, *most - std::max<int64_t>(0, *used - unused));
}

bool is_one_of(std::string_view word, const std::string& list) {
  std::istringstream words(list);
  for (std::string one; std::getline(words, one, ',');)
    if (one == word) return true;
  return false;
}

/// The group of this process in a hierarchy, from the hierarchy's root: a line is "4:cpu,memory:/group", of version 2
/// "0::/group".
std::optional<fs::path> group_of_process(const fs::path& root, const Version& version) {
  std::ifstream file(root / "proc/self/cgroup");
  for (std::string id, controllers, group;
       std::getline(file, id, ':') && std::getline(file, controllers, ':') && std::getline(file, group);)
    if (version.controller.empty() ? id == "0" && controllers.empty()
                                   : is_one_of(version.controller, controllers))
      return fs::path(group);
  return std::nullopt;
}

/// A path as /proc/self/mountinfo writes it: blanks and backslashes are "\" and three octal digits.
fs::path unescaped(const std::string& text) {
  const auto is_octal = [](char c) { return c >= '0' && c <= '7'; };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i)
    if (text[i] == '\\' && i + 3 < text.size() &&
        std::all_of(text.begin() + i + 1, text.begin() + i + 4, is_octal)) {
      out += static_cast<char>(std::stoi(text.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      out += text[i];
    }
  return out;
}

/// A hierarchy of groups, or the part of it below `group`, and the folder where it is seen.
struct Mount {
  fs::path group, folder;
};

/// Lines are "32 31 0:29 GROUP FOLDER rw,relatime shared:9 - cgroup cgroup rw,memory", with any number of words (none
/// too) where "shared:9" stands.
std::vector<Mount> mounts_of(const fs::path& root, const Version& version) {
  std::vector<Mount> out;
  std::ifstream file(root / "proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string skipped, group, folder, type, source, options;
    words >> skipped >> skipped >> skipped >> group >> folder;
    while (words >> skipped && skipped != "-") continue;
    words >> type >> source >> options;
    if (type == version.file_system && (version.controller.empty() || is_one_of(version.controller, options)))
      out.push_back({unescaped(group), unescaped(folder)});
  }
  return out;
}

/// Least room in the group of this process and all above it that are seen.
Bytes room_in_groups(const fs::path& root, const Version& version) {
  const auto group = group_of_process(root, version);
  if (!group) return std::nullopt;
  Bytes out;
  for (const auto& mount : mounts_of(root, version)) {
    // Of a mount that shows other groups, the path to this one goes up: these are not around this process.
    const auto below = group->lexically_relative(mount.group);
    if (below.empty() || std::find(below.begin(), below.end(), "..") != below.end()) continue;
    auto folder = root / mount.folder.relative_path();
    out = smaller(out, room_in(folder, version));
    for (const auto& name : below) {
      folder /= name;
      out = smaller(out, room_in(folder, version));
    }
  }
  return out;
}

}  // namespace

std::optional<int64_t> free_memory(const fs::path& root) {
  auto out = number_of(root / "proc/meminfo", "MemAvailable:");  // "MemAvailable:   18423456 kB"
  if (out) *out = std::min(*out, std::numeric_limits<int64_t>::max() >> 10) << 10;
  for (const auto& version : kVersions) out = smaller(out, room_in_groups(root, version));
  return out;
}

}  // namespace introspect

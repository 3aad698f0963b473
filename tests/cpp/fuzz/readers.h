#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace introspect::testing {

/// Something that reads bytes from outside: a file format, or text that is parsed.
struct Reader {
  std::string name;

  /// What the file is called, since some are known by their endings.
  std::string file_name;

  /// Sound bytes, which the fuzzer damages.
  std::vector<std::string> seeds;

  /// Reads the file in whatever ways the library offers. May throw what the library says it throws, and nothing else.
  std::function<void(const std::filesystem::path&)> read;
};

/// Every reader of the library. `work` is a folder for what seeds are made from; `data` is tests/data.
std::vector<Reader> readers(const std::filesystem::path& work, const std::filesystem::path& data);

}  // namespace introspect::testing

#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "introspect/export.h"

namespace introspect::experiments {

/// Finished cells of experiments on disk, by the hash of what was computed.
///
/// One SQLite file in write-ahead mode. A cell is committed before `put` returns, so a process killed at any moment
/// leaves every finished cell and a sound file. Several processes may use one store: readers never wait, writers
/// wait for one another, and of two results for one key the first stays. Safe from several threads.
class INTROSPECT_EXPORT Store {
 public:
  /// Opens the file, or creates it with the folders above it.
  /// Throws IoError for a file that is not such a store or cannot be written.
  static std::shared_ptr<Store> open(const std::filesystem::path& path);
  ~Store();

  std::optional<std::string> get(const std::string& key) const;
  /// Throws IoError (disk full, another process holding the file for over a minute); the store stays as it was.
  void put(const std::string& key, const std::string& value);
  int64_t size() const;
  const std::filesystem::path& path() const;

  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

 private:
  struct Database;
  explicit Store(std::unique_ptr<Database> database);
  std::unique_ptr<Database> database_;
};

}  // namespace introspect::experiments

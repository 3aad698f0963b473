#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "introspect/experiments/protocol.h"
#include "introspect/export.h"

namespace introspect::experiments {

/// What made a reading; every row of a store says it.
struct Origin {
  std::string model_name, model_hash, dtype, device;
  std::string protocol, protocol_hash;
  uint64_t seed = 0;
  std::string strength_unit;
  std::string introspect_version, torch_version;
};

/// One finished reading and the setting it belongs to.
struct Cell {
  std::string key;         ///< hash of everything that decides the value
  std::string value;       ///< JSON (Reading::to_json)
  std::string base_key{};  ///< of the same reading without steering; empty where this is that one
  std::string concept_name{};
  double strength = 0.0;
  int64_t first_layer = -1, last_layer = -1;  ///< inclusive; -1 where nothing was added
  std::string question{};
  std::string question_kind{};  ///< "introspection" or "control"
  std::string
      kind{};  ///< question_kind, "random", "base" (nothing added) or "norms" (of the residual stream)
  int64_t null_index = -1;
  std::string paraphrase{};  ///< as in Row, and so what follows
  int64_t place = -1;
  double part_first = 0.0, part_last = 1.0;
  std::string asked_in = kOwnConversation;
};

/// A cell as it lies in a store.
struct StoredCell {
  Cell cell;
  Origin origin;
  std::string written;  ///< UTC, "2026-01-31T23:59:59.123Z"
};

/// All cells of one origin.
struct StoredRun {
  Origin origin;
  int64_t cells = 0;
  std::string first_written, last_written;
};

/// What merging another store did.
struct Merged {
  struct Conflict {
    std::string key, kept, other;  ///< the two values
  };
  int64_t added = 0;
  int64_t same = 0;  ///< here before, with the same value
  std::vector<Conflict> conflicts;
};

/// Finished cells of experiments on disk, by the hash of what was computed.
///
/// One SQLite file in write-ahead mode. Cells are committed before `put_many` returns, so a process killed at any moment
/// leaves every finished cell and a sound file. (A loss of power may take back the last commits, never the
/// file.) Several processes may use one store: readers never wait, writers wait for one another, and of two results for
/// one key the first stays. A reading that several protocols or settings share is one cell, and a row of each of them.
/// Safe from several threads.
class INTROSPECT_EXPORT Store {
 public:
  /// Opens the file, or creates it with the folders above it.
  /// Throws IoError for a file that is not such a store, has another layout or cannot be written.
  static std::shared_ptr<Store> open(const std::filesystem::path& path);
  ~Store();

  std::optional<std::string> get(const std::string& key) const;

  /// Writes cells of one origin in one transaction; the number that were not there before.
  /// Throws IoError (disk full, another process writing for over a minute); the store stays as it was.
  int64_t put_many(const std::vector<Cell>& cells, const Origin& origin);
  /// One cell in a transaction of its own; whether it was not there before.
  bool put(const Cell& cell, const Origin& origin) { return put_many({cell}, origin) == 1; }

  /// Makes cells that are there, whoever made them, rows of this origin's protocol and of these settings, too; the number
  /// of rows that were not there before. Values are not looked at. Throws as put_many.
  int64_t share(const std::vector<Cell>& cells, const Origin& origin);

  int64_t size() const;
  /// Every row: the cells in the order of writing, and then those that other protocols or settings share.
  std::vector<StoredCell> rows() const;
  /// Every origin with the number of its cells, in the order of their first.
  std::vector<StoredRun> runs() const;

  /// Takes over the cells of another store; where both have a key, this store's value stays.
  /// Throws IoError for a file that is not there or is no store, std::invalid_argument for this store itself.
  Merged merge(const std::filesystem::path& other);

  /// What SQLite finds wrong with the file; empty when it is sound.
  std::vector<std::string> problems() const;
  /// Gives unused space back to the file system.
  void vacuum();

  const std::filesystem::path& path() const;

  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

 private:
  struct Database;
  explicit Store(std::unique_ptr<Database> database);
  std::unique_ptr<Database> database_;
};

}  // namespace introspect::experiments

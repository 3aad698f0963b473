#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "introspect/experiments/setting.h"
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

/// The conversation of a question in stores that were written before it was noted.
inline constexpr auto kNotRecorded = "not recorded";

/// One finished reading and its setting.
struct Cell : Setting {
  std::string key;       ///< hash of everything that decides the value
  std::string value;     ///< JSON (Reading::to_json)
  std::string base_key;  ///< of the same reading without an injection; empty where this is that one

  Cell() = default;
  Cell(std::string key, std::string value, std::string base_key = {}, Setting setting = {})
      : Setting(std::move(setting)),
        key(std::move(key)),
        value(std::move(value)),
        base_key(std::move(base_key)) {}
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
  int64_t damaged = 0;  ///< left out: no readings
};

struct Database;

/// Finished cells of experiments on disk, by the hash of what was computed.
///
/// One SQLite file in write-ahead mode. Cells are committed before `put_many` returns, so a process killed at any moment
/// leaves every finished cell and a sound file. (A loss of power may take back the last commits, never the
/// file.) Several processes may use one store: readers never wait, writers wait for one another, and of two results for
/// one key the first stays. A reading that several protocols or settings share is one cell and stands under the first
/// that made it. Safe from several threads.
class INTROSPECT_EXPORT Store {
 public:
  /// Opens the file, or creates it with the folders above it. A store that is there and cannot be written (its medium is
  /// read-only, or full) can be read: see `check_can_write`.
  ///
  /// `read_only` opens a file that is there and changes nothing of it. Throws IoError for a file that is not such a store
  /// (its tables must be those of a store, without views and triggers), has another layout or a damaged write-ahead log
  /// (which is one of the `problems` where `read_only`), or cannot be made.
  static std::shared_ptr<Store> open(const std::filesystem::path& path, bool read_only = false);
  ~Store();

  std::optional<std::string> get(const std::string& key) const;

  /// Writes cells of one origin in one transaction; the number that were not there before.
  /// Throws IoError (disk full, another process writing for over a minute); the store stays as it was.
  int64_t put_many(const std::vector<Cell>& cells, const Origin& origin);
  /// One cell in a transaction of its own; whether it was not there before.
  bool put(const Cell& cell, const Origin& origin) { return put_many({cell}, origin) == 1; }

  /// Notes what a run asks for, whether it is there or not, under the run's own name: cells are shared, and stand under
  /// the first run that made them. Values are not looked at; what was noted before is left alone.
  void put_asked(const std::vector<Cell>& cells, const Origin& origin);
  /// What runs have asked for, in the order of asking; a value is empty where that reading is not there yet.
  std::vector<StoredCell> asked() const;

  int64_t size() const;
  /// Every cell, in the order of writing.
  std::vector<StoredCell> rows() const;
  /// Every origin with the number of its cells, in the order of their first.
  std::vector<StoredRun> runs() const;

  /// Takes over the cells of another store, which is only read; where both have a key, this store's value stays.
  /// `sound_only` leaves out those that are `damaged`; `unless_in`, a third store, those that it has too, and what runs
  /// have asked for. Throws IoError for a file that is not there or is no store, std::invalid_argument for this store
  /// itself.
  Merged merge(const std::filesystem::path& other, bool sound_only = false,
               const std::filesystem::path& unless_in = {});

  /// What is wrong with the file, by SQLite's own check, and with its write-ahead log; empty when it is sound.
  std::vector<std::string> problems() const;

  /// A cell whose value cannot be what a run has read: no JSON of a reading, a probability of 7.
  struct Damaged {
    std::string key, what;
  };
  std::vector<Damaged> damaged() const;
  /// Gives unused space back to the file system.
  void vacuum();

  bool can_write() const;
  /// Throws IoError that says why, if the store can only be read.
  void check_can_write() const;

  const std::filesystem::path& path() const;

  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

 private:
  struct Holder;
  explicit Store(std::unique_ptr<Holder> holder);
  const Database& database() const;
  std::unique_ptr<Holder> holder_;
};

}  // namespace introspect::experiments

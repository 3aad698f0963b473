#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include <sqlite3.h>

#include "introspect/core/check.h"
#include "introspect/experiments/store.h"

namespace introspect::experiments {

constexpr auto kOriginColumns =
    "model_name, model_hash, dtype, device, protocol, protocol_hash, seed, strength_unit, "
    "introspect_version, "
    "torch_version";

/// What SQLite could not do, with its code.
class DatabaseError : public IoError {
 public:
  DatabaseError(const std::string& what, int code) : IoError(what), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

/// One connection to a store's file.
struct Database {
  std::filesystem::path path;
  sqlite3* handle = nullptr;
  std::string why_read_only;       // empty: it can be written
  std::string damage;              // of its write-ahead log
  std::filesystem::path copy;      // a folder that holds a copy which is read in the file's place
  mutable std::mutex mutex;        // one statement at a time on the one connection
  mutable int64_t steps_left = 0;  // of a statement, see allow

  Database() = default;
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  [[noreturn]] void fail(std::string_view what) const;
  void run(const std::string& sql) const;
  void check_can_write() const;
  /// Lets what comes now take as long as the file's size can explain.
  void allow() const;

  /// Waits for other writers before it begins. Takes everything back when `work` throws.
  template <typename Work>
  void in_transaction(const Work& work) const {
    check_can_write();
    run("BEGIN IMMEDIATE");
    try {
      work();
      run("COMMIT");
    } catch (...) {
      sqlite3_exec(handle, "ROLLBACK", nullptr, nullptr, nullptr);
      throw;
    }
  }
};

/// Opens the file, or makes it with the folders above it; one that can only be read is opened for that.
std::unique_ptr<Database> open_to_write(const std::filesystem::path& path);

/// Opens a file that is there, and changes nothing of it. Where nothing can be written beside it, it is read as it stands,
/// or as a copy where a write-ahead log belongs to it.
std::unique_ptr<Database> open_to_read(const std::filesystem::path& path);

/// Whether there is the table of what runs have asked for: older stores that can only be read do not have it.
bool has_asked(const Database& database);

/// The columns of a cell's base_key and setting, as they are written: "base_key, concept, ...".
std::string setting_columns();
/// As they can be read of the table "cells" or "asked": older stores that can only be read do not say where a question was
/// asked.
std::string setting_columns(const Database& database, const std::string& table);
/// "?,?,?" for as many values as a setting's columns and `more`.
std::string setting_marks(int more);

/// A prepared statement; parameters and columns are taken in order.
class Statement {
 public:
  Statement(const Database& database, const std::string& sql);

  /// The text must outlive the step.
  Statement& bind(const std::string& text);
  Statement& bind(int64_t number);
  Statement& bind(double number);
  Statement& bind(const Origin& origin);
  /// Its base_key and setting.
  Statement& bind(const Cell& cell);

  /// The next row, if there is one.
  bool step();
  void reset();

  std::string text();
  int64_t integer() { return sqlite3_column_int64(statement_.get(), column_++); }
  double real() { return sqlite3_column_double(statement_.get(), column_++); }
  Origin origin();
  Cell setting();

 private:
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };
  const Database& database_;
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
  int bound_ = 0, column_ = 0;
};

/// The one number that a query gives.
int64_t number(const Database& database, const std::string& sql);

}  // namespace introspect::experiments

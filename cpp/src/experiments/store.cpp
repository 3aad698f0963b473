#include "introspect/experiments/store.h"

#include <mutex>
#include <utility>

#include <sqlite3.h>

#include "introspect/core/check.h"

namespace introspect::experiments {
namespace {

constexpr int kBusyMilliseconds = 60'000;
// "intr" in ASCII: marks the file as ours in SQLite's header, so that another program's database is refused.
constexpr int kApplicationId = 0x696e7472;

struct Finalize {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Statement = std::unique_ptr<sqlite3_stmt, Finalize>;

}  // namespace

struct Store::Database {
  std::filesystem::path path;
  sqlite3* handle = nullptr;
  mutable std::mutex mutex;  // one statement at a time on the one connection

  ~Database() { sqlite3_close(handle); }

  [[noreturn]] void fail(const std::string& what) const {
    throw IoError(concat("Store: ", path.string(), ": ", what, ": ", sqlite3_errmsg(handle)));
  }
  void run(const std::string& sql) const {
    if (sqlite3_exec(handle, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK)
      fail("cannot run '" + sql + "'");
  }
  Statement prepare(const char* sql) const {
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v2(handle, sql, -1, &statement, nullptr) != SQLITE_OK) fail("cannot read the store");
    return Statement(statement);
  }
  int64_t number(const char* sql) const {
    const auto statement = prepare(sql);
    if (sqlite3_step(statement.get()) != SQLITE_ROW) fail("cannot read the store");
    return sqlite3_column_int64(statement.get(), 0);
  }
};

Store::Store(std::unique_ptr<Database> database) : database_(std::move(database)) {}
Store::~Store() = default;

std::shared_ptr<Store> Store::open(const std::filesystem::path& path) {
  auto database = std::make_unique<Database>();
  database->path = path;
  std::error_code problem;
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), problem);
  check<IoError>(!problem, "Store: ", path.string(), ": cannot make the folder: ", problem.message());
  constexpr int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX;
  if (sqlite3_open_v2(path.c_str(), &database->handle, flags, nullptr) != SQLITE_OK)
    database->fail("cannot open");
  sqlite3_busy_timeout(database->handle, kBusyMilliseconds);

  // In this order: a store made by another process in between shows its table and its mark together.
  const bool is_new = database->number("SELECT count(*) FROM sqlite_master") == 0;
  check<IoError>(is_new || database->number("PRAGMA application_id") == kApplicationId,
                 "Store: ", path.string(),
                 ": the file must be a store of this library, got another program's database");
  // Write-ahead logging: a commit survives the death of the process; readers do not wait for the writer.
  database->run("PRAGMA journal_mode=WAL");
  database->run("PRAGMA synchronous=NORMAL");
  if (is_new) {
    database->run("BEGIN IMMEDIATE");
    database->run(
        "CREATE TABLE IF NOT EXISTS cells(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID");
    database->run("PRAGMA application_id=" + std::to_string(kApplicationId));
    database->run("COMMIT");
  }
  return std::shared_ptr<Store>(new Store(std::move(database)));
}

std::optional<std::string> Store::get(const std::string& key) const {
  const std::lock_guard lock(database_->mutex);
  const auto statement = database_->prepare("SELECT value FROM cells WHERE key = ?");
  sqlite3_bind_text64(statement.get(), 1, key.data(), key.size(), SQLITE_STATIC, SQLITE_UTF8);
  const int status = sqlite3_step(statement.get());
  if (status == SQLITE_DONE) return std::nullopt;
  if (status != SQLITE_ROW) database_->fail("cannot read a cell");
  const auto* const text = reinterpret_cast<const char*>(sqlite3_column_text(statement.get(), 0));
  return std::string(text, static_cast<size_t>(sqlite3_column_bytes(statement.get(), 0)));
}

void Store::put(const std::string& key, const std::string& value) {
  const std::lock_guard lock(database_->mutex);
  const auto statement = database_->prepare("INSERT OR IGNORE INTO cells(key, value) VALUES(?, ?)");
  sqlite3_bind_text64(statement.get(), 1, key.data(), key.size(), SQLITE_STATIC, SQLITE_UTF8);
  sqlite3_bind_text64(statement.get(), 2, value.data(), value.size(), SQLITE_STATIC, SQLITE_UTF8);
  if (sqlite3_step(statement.get()) != SQLITE_DONE) database_->fail("cannot write a cell");
}

int64_t Store::size() const {
  const std::lock_guard lock(database_->mutex);
  return database_->number("SELECT count(*) FROM cells");
}

const std::filesystem::path& Store::path() const {
  return database_->path;
}

}  // namespace introspect::experiments

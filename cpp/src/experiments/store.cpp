#include "introspect/experiments/store.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string_view>
#include <thread>
#include <utility>

#include <sqlite3.h>

#include "introspect/core/check.h"

namespace introspect::experiments {
namespace {

constexpr int kBusyMilliseconds = 60'000;
// "intr" in ASCII: marks the file as ours in SQLite's header, so that another program's database is refused.
constexpr int kApplicationId = 0x696e7472;
constexpr int kLayout = 2;  // of the tables below, in the header's user_version

constexpr auto kTables = R"sql(
CREATE TABLE runs(
  id INTEGER PRIMARY KEY,
  model_name TEXT NOT NULL, model_hash TEXT NOT NULL, dtype TEXT NOT NULL, device TEXT NOT NULL,
  protocol TEXT NOT NULL, protocol_hash TEXT NOT NULL, seed INTEGER NOT NULL, strength_unit TEXT NOT NULL,
  introspect_version TEXT NOT NULL, torch_version TEXT NOT NULL,
  UNIQUE(model_name, model_hash, dtype, device, protocol, protocol_hash, seed, strength_unit,
         introspect_version, torch_version));
CREATE TABLE cells(
  key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL, base_key TEXT NOT NULL,
  run INTEGER NOT NULL REFERENCES runs(id), written TEXT NOT NULL,
  concept TEXT NOT NULL, strength REAL NOT NULL, first_layer INTEGER NOT NULL, last_layer INTEGER NOT NULL,
  question TEXT NOT NULL, question_kind TEXT NOT NULL, kind TEXT NOT NULL, null_index INTEGER NOT NULL,
  paraphrase TEXT NOT NULL, place INTEGER NOT NULL, part_first REAL NOT NULL, part_last REAL NOT NULL,
  asked_in TEXT NOT NULL);
)sql";

// A reading is one cell, under the first protocol and setting that made it; here are the others that it is a row of.
constexpr auto kShared = R"sql(
CREATE TABLE IF NOT EXISTS shared(
  key TEXT NOT NULL REFERENCES cells(key), run INTEGER NOT NULL REFERENCES runs(id), written TEXT NOT NULL,
  base_key TEXT NOT NULL, concept TEXT NOT NULL, strength REAL NOT NULL, first_layer INTEGER NOT NULL,
  last_layer INTEGER NOT NULL, question TEXT NOT NULL, question_kind TEXT NOT NULL, kind TEXT NOT NULL,
  null_index INTEGER NOT NULL, paraphrase TEXT NOT NULL, place INTEGER NOT NULL, part_first REAL NOT NULL,
  part_last REAL NOT NULL, asked_in TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS shared_key ON shared(key);
)sql";
// Stores that were written before control questions had a conversation of their own, and before "random" was the word.
constexpr auto kNotRecorded = "not recorded";
const std::string kUpgrade = concat("ALTER TABLE cells ADD COLUMN asked_in TEXT NOT NULL DEFAULT '",
                                    kNotRecorded, "'; UPDATE cells SET kind = 'random' WHERE kind = 'null'");

constexpr auto kOriginColumns =
    "model_name, model_hash, dtype, device, protocol, protocol_hash, seed, strength_unit, "
    "introspect_version, "
    "torch_version";
constexpr auto kSettingColumns =
    "base_key, concept, strength, first_layer, last_layer, question, question_kind, kind, null_index, "
    "paraphrase, place, part_first, part_last, asked_in";
/// A select of every row: those of `cells` and of `shared`. (In old stores the column of paraphrases is one of numbers.)
std::string all_rows(const std::string& schema) {
  const std::string columns = kSettingColumns, name = "paraphrase";
  const auto at = columns.find(name);
  const auto as_text = concat(columns.substr(0, at), "CAST(", name, " AS TEXT) AS ", columns.substr(at));
  return concat("(SELECT key, run, written, ", as_text, " FROM ", schema,
                ".cells UNION ALL SELECT key, run, written, ", as_text, " FROM ", schema, ".shared)");
}
const std::string kRows = all_rows("main");
const std::string kNoParaphrase = "-1";  // the column once held numbers

struct Finalize {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};

}  // namespace

struct Store::Database {
  std::filesystem::path path;
  sqlite3* handle = nullptr;
  mutable std::mutex mutex;  // one statement at a time on the one connection

  ~Database() { sqlite3_close(handle); }

  [[noreturn]] void fail(std::string_view what) const {
    throw IoError(concat("Store: ", path.string(), ": ", what, ": ", sqlite3_errmsg(handle)));
  }
  void run(const std::string& sql) const {
    if (sqlite3_exec(handle, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK)
      fail("cannot run '" + sql + "'");
  }
  /// Write-ahead logging: a commit survives the death of the process; readers do not wait for the writer.
  /// Where several processes switch at once SQLite refuses at once instead of waiting as it does elsewhere.
  void use_write_ahead_log() const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kBusyMilliseconds);
    for (;;) {
      const int status = sqlite3_exec(handle, "PRAGMA journal_mode=WAL", nullptr, nullptr, nullptr);
      if (status == SQLITE_OK) return;
      if (status != SQLITE_BUSY || std::chrono::steady_clock::now() > deadline)
        fail("cannot switch to write-ahead logging");
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  /// Waits for other writers before it begins. Takes everything back when `work` throws.
  template <typename Work>
  void in_transaction(const Work& work) const {
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

namespace {

/// A prepared statement; parameters and columns are taken in order.
class Statement {
 public:
  template <typename Database>
  Statement(const Database& database, const std::string& sql)
      : fail_([&database](std::string_view what) { database.fail(what); }) {
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v2(database.handle, sql.c_str(), -1, &statement, nullptr) != SQLITE_OK)
      fail_("cannot read the store");
    statement_.reset(statement);
  }

  /// The text must outlive the step.
  Statement& bind(const std::string& text) {
    sqlite3_bind_text64(statement_.get(), ++bound_, text.data(), text.size(), SQLITE_STATIC, SQLITE_UTF8);
    return *this;
  }
  Statement& bind(int64_t number) {
    sqlite3_bind_int64(statement_.get(), ++bound_, number);
    return *this;
  }
  Statement& bind(double number) {
    sqlite3_bind_double(statement_.get(), ++bound_, number);
    return *this;
  }
  Statement& bind(const Origin& origin) {
    return bind(origin.model_name)
        .bind(origin.model_hash)
        .bind(origin.dtype)
        .bind(origin.device)
        .bind(origin.protocol)
        .bind(origin.protocol_hash)
        .bind(static_cast<int64_t>(origin.seed))
        .bind(origin.strength_unit)
        .bind(origin.introspect_version)
        .bind(origin.torch_version);
  }
  /// The setting's columns: all of a cell but key and value.
  Statement& bind(const Cell& cell) {
    return bind(cell.base_key)
        .bind(cell.concept_name)
        .bind(cell.strength)
        .bind(cell.first_layer)
        .bind(cell.last_layer)
        .bind(cell.question)
        .bind(cell.question_kind)
        .bind(cell.kind)
        .bind(cell.null_index)
        .bind(cell.paraphrase.empty() ? kNoParaphrase : cell.paraphrase)
        .bind(cell.place)
        .bind(cell.part_first)
        .bind(cell.part_last)
        .bind(cell.asked_in);
  }

  /// The next row, if there is one.
  bool step() {
    column_ = 0;
    const int status = sqlite3_step(statement_.get());
    if (status != SQLITE_ROW && status != SQLITE_DONE) fail_("cannot read or write cells");
    return status == SQLITE_ROW;
  }
  void reset() {
    sqlite3_reset(statement_.get());
    bound_ = 0;
  }

  std::string text() {
    const auto* const text = reinterpret_cast<const char*>(sqlite3_column_text(statement_.get(), column_));
    return {text, static_cast<size_t>(sqlite3_column_bytes(statement_.get(), column_++))};
  }
  int64_t integer() { return sqlite3_column_int64(statement_.get(), column_++); }
  double real() { return sqlite3_column_double(statement_.get(), column_++); }
  Origin origin() {
    Origin out;
    for (auto* field :
         {&out.model_name, &out.model_hash, &out.dtype, &out.device, &out.protocol, &out.protocol_hash})
      *field = text();
    out.seed = static_cast<uint64_t>(integer());
    for (auto* field : {&out.strength_unit, &out.introspect_version, &out.torch_version}) *field = text();
    return out;
  }
  Cell setting() {
    Cell out;
    out.base_key = text();
    out.concept_name = text();
    out.strength = real();
    out.first_layer = integer();
    out.last_layer = integer();
    for (auto* field : {&out.question, &out.question_kind, &out.kind}) *field = text();
    if (out.kind == "null") out.kind = "random";  // as it was called once
    out.null_index = integer();
    out.paraphrase = text();
    if (out.paraphrase == kNoParaphrase) out.paraphrase.clear();
    out.place = integer();
    out.part_first = real();
    out.part_last = real();
    out.asked_in = text();
    return out;
  }

 private:
  std::function<void(std::string_view)> fail_;
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
  int bound_ = 0, column_ = 0;
};

template <typename Database>
int64_t number(const Database& database, const std::string& sql) {
  Statement statement(database, sql);
  check<IoError>(statement.step(), "Store: '", sql, "' must give a number, got nothing");
  return statement.integer();
}

template <typename Database>
void check_is_store(const Database& database) {
  check<IoError>(number(database, "PRAGMA application_id") == kApplicationId,
                 "Store: ", database.path.string(),
                 ": the file must be a store of this library, got another program's database");
  const auto layout = number(database, "PRAGMA user_version");
  check<IoError>(layout == kLayout, "Store: ", database.path.string(), ": the file must have layout ",
                 kLayout, ", got layout ", layout, " of ", layout < kLayout ? "an older" : "a newer",
                 " introspect: go on with that one, or in another file");
}

/// The number of a run, which is noted where it is new.
template <typename Database>
int64_t run_of(const Database& database, const Origin& origin) {
  constexpr auto marks = "(?,?,?,?,?,?,?,?,?,?)";
  Statement(database,
            concat("INSERT INTO runs(", kOriginColumns, ") VALUES", marks, " ON CONFLICT DO NOTHING"))
      .bind(origin)
      .step();
  Statement run(database, concat("SELECT id FROM runs WHERE (", kOriginColumns, ") = ", marks));
  run.bind(origin).step();
  return run.integer();
}

/// "a.x = b.x AND a.y = b.y" of "x, y".
std::string same_columns(const std::string& a, const std::string& b, const std::string& columns) {
  std::string out;
  for (size_t from = 0; from < columns.size();) {
    const auto comma = std::min(columns.find(", ", from), columns.size());
    const auto column = columns.substr(from, comma - from);
    out += concat(out.empty() ? "" : " AND ", a, ".", column, " = ", b, ".", column);
    from = comma + 2;
  }
  return out;
}

/// Tables and columns that came later, which older versions pass over.
template <typename Database>
void add_what_is_missing(const Database& database) {
  const auto has_it = [&] {
    return number(database, "SELECT count(*) FROM pragma_table_info('cells') WHERE name = 'asked_in'") > 0 &&
           number(database, "SELECT count(*) FROM sqlite_master WHERE name = 'shared_key'") > 0;
  };
  if (has_it()) return;
  database.in_transaction([&] {
    if (has_it()) return;  // another process was quicker
    if (number(database, "SELECT count(*) FROM pragma_table_info('cells') WHERE name = 'asked_in'") == 0)
      database.run(kUpgrade);
    database.run(kShared);
  });
}

}  // namespace

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

  const auto is_empty = [&] { return number(*database, "SELECT count(*) FROM sqlite_master") == 0; };
  const bool is_new = is_empty();
  // A store that another process makes in between shows its tables and its marks together.
  if (!is_new) check_is_store(*database);
  database->use_write_ahead_log();
  database->run("PRAGMA synchronous=NORMAL");
  if (is_new)
    database->in_transaction([&] {
      if (!is_empty()) return;  // another process was quicker
      database->run(kTables);
      database->run(kShared);
      database->run(concat("PRAGMA application_id=", kApplicationId));
      database->run(concat("PRAGMA user_version=", kLayout));
    });
  add_what_is_missing(*database);
  return std::shared_ptr<Store>(new Store(std::move(database)));
}

std::optional<std::string> Store::get(const std::string& key) const {
  const std::lock_guard lock(database_->mutex);
  Statement found(*database_, "SELECT value FROM cells WHERE key = ?");
  if (!found.bind(key).step()) return std::nullopt;
  return found.text();
}

int64_t Store::put_many(const std::vector<Cell>& cells, const Origin& origin) {
  if (cells.empty()) return 0;
  const std::lock_guard lock(database_->mutex);
  int64_t added = 0;
  database_->in_transaction([&] {
    const auto id = run_of(*database_, origin);
    Statement insert(
        *database_,
        concat("INSERT INTO cells(run, key, value, ", kSettingColumns, ", written) ",
               "VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) ",
               "ON CONFLICT DO NOTHING"));
    for (const auto& cell : cells) {
      insert.bind(id).bind(cell.key).bind(cell.value).bind(cell).step();
      added += sqlite3_changes(database_->handle);
      insert.reset();
    }
  });
  return added;
}

int64_t Store::share(const std::vector<Cell>& cells, const Origin& origin) {
  if (cells.empty()) return 0;
  const std::lock_guard lock(database_->mutex);
  int64_t added = 0;
  database_->in_transaction([&] {
    const auto id = run_of(*database_, origin);
    // The same row of another run of the protocol (with a later version, say) is not a row more.
    Statement insert(
        *database_,
        concat("INSERT INTO shared(run, key, ", kSettingColumns, ", written) ",
               "SELECT ?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now') ",
               "WHERE EXISTS (SELECT 1 FROM cells WHERE key = ?) AND NOT EXISTS (SELECT 1 FROM ", kRows,
               " rows JOIN runs ON runs.id = rows.run WHERE rows.key = ? AND runs.protocol = ? AND (asked_in "
               "= '",
               kNotRecorded, "' OR (", kSettingColumns, ") = (?,?,?,?,?,?,?,?,?,?,?,?,?,?)))"));
    for (const auto& cell : cells) {
      insert.bind(id)
          .bind(cell.key)
          .bind(cell)
          .bind(cell.key)
          .bind(cell.key)
          .bind(origin.protocol)
          .bind(cell)
          .step();
      added += sqlite3_changes(database_->handle);
      insert.reset();
    }
  });
  return added;
}

int64_t Store::size() const {
  const std::lock_guard lock(database_->mutex);
  return number(*database_, "SELECT count(*) FROM cells");
}

std::vector<StoredCell> Store::rows() const {
  const std::lock_guard lock(database_->mutex);
  std::vector<StoredCell> out;
  for (const std::string table : {"cells", "shared"}) {
    const auto from =
        table == "cells" ? "cells" : "shared JOIN (SELECT key AS k, value FROM cells) ON k = shared.key";
    Statement found(*database_, concat("SELECT ", table, ".key, value, ", table, ".written, ",
                                       kSettingColumns, ", ", kOriginColumns, " FROM ", from,
                                       " JOIN runs ON runs.id = ", table, ".run ORDER BY ", table, ".rowid"));
    while (found.step()) {
      auto key = found.text(), value = found.text(), written = found.text();
      out.push_back({found.setting(), found.origin(), std::move(written)});
      out.back().cell.key = std::move(key);
      out.back().cell.value = std::move(value);
    }
  }
  return out;
}

std::vector<StoredRun> Store::runs() const {
  const std::lock_guard lock(database_->mutex);
  Statement found(*database_,
                  concat("SELECT count(*), min(written), max(written), ", kOriginColumns, " FROM ", kRows,
                         " rows JOIN runs ON runs.id = rows.run GROUP BY runs.id ORDER BY runs.id"));
  std::vector<StoredRun> out;
  while (found.step()) {
    const auto cells = found.integer();
    auto first = found.text(), last = found.text();
    out.push_back({found.origin(), cells, std::move(first), std::move(last)});
  }
  return out;
}

Merged Store::merge(const std::filesystem::path& other) {
  check<IoError>(std::filesystem::exists(other), "Store::merge: there is no file ", other.string());
  check<std::invalid_argument>(!std::filesystem::equivalent(other, path()),
                               "Store::merge: a store cannot be merged into itself, got ", other.string());
  const auto opened = Store::open(other);  // refuses what is no store
  const std::lock_guard lock(database_->mutex);
  Statement(*database_, "ATTACH ? AS other").bind(other.string()).step();
  struct Detach {
    const Database& database;
    ~Detach() { sqlite3_exec(database.handle, "DETACH other", nullptr, nullptr, nullptr); }
  } const detach{*database_};
  Merged out;
  database_->in_transaction([&] {
    constexpr auto both = " FROM other.cells theirs JOIN main.cells ours ON ours.key = theirs.key WHERE ";
    out.same = number(*database_, concat("SELECT count(*)", both, "ours.value = theirs.value"));
    Statement differing(*database_, concat("SELECT ours.key, ours.value, theirs.value", both,
                                           "ours.value != theirs.value ORDER BY ours.rowid"));
    while (differing.step()) {
      auto key = differing.text(), kept = differing.text();
      out.conflicts.push_back({std::move(key), std::move(kept), differing.text()});
    }
    database_->run(concat("INSERT INTO main.runs(", kOriginColumns, ") SELECT ", kOriginColumns,
                          " FROM other.runs WHERE true ON CONFLICT DO NOTHING"));
    database_->run(concat("INSERT INTO main.cells(run, key, value, written, ", kSettingColumns,
                          ") SELECT ours.id, key, value, written, ", kSettingColumns,
                          " FROM other.cells JOIN other.runs theirs ON theirs.id = run",
                          " JOIN main.runs ours USING(", kOriginColumns,
                          ") WHERE true ORDER BY other.cells.rowid ON CONFLICT DO NOTHING"));
    out.added = sqlite3_changes(database_->handle);
    // What their rows are of cells that were shared there, or were here before.
    database_->run(concat("INSERT INTO main.shared(run, key, written, ", kSettingColumns,
                          ") SELECT ours.id, key, written, ", kSettingColumns, " FROM ", all_rows("other"),
                          " rows JOIN other.runs theirs ON theirs.id = run JOIN main.runs ours USING(",
                          kOriginColumns, ") WHERE NOT EXISTS (SELECT 1 FROM ", kRows,
                          " known JOIN main.runs made ON made.id = known.run",
                          " WHERE known.key = rows.key AND made.protocol = ours.protocol AND ",
                          same_columns("known", "rows", kSettingColumns), ")"));
  });
  return out;
}

std::vector<std::string> Store::problems() const {
  const std::lock_guard lock(database_->mutex);
  Statement found(*database_, "PRAGMA integrity_check");
  std::vector<std::string> out;
  while (found.step()) out.push_back(found.text());
  if (out == std::vector<std::string>{"ok"}) out.clear();
  return out;
}

void Store::vacuum() {
  const std::lock_guard lock(database_->mutex);
  database_->run("VACUUM");
  database_->run("PRAGMA wal_checkpoint(TRUNCATE)");
}

const std::filesystem::path& Store::path() const {
  return database_->path;
}

}  // namespace introspect::experiments

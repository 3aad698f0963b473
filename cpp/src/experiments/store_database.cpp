#include "experiments/store_database.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <map>
#include <set>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "experiments/write_ahead_log.h"

namespace introspect::experiments {
namespace {

constexpr int kBusyMilliseconds = 60'000;
// "intr" in ASCII: marks the file as ours in SQLite's header, so that another program's database is refused.
constexpr int kApplicationId = 0x696e7472;
const std::string kNoParaphrase = "-1";  // the column once held numbers
constexpr int kLayout = 2;               // of the tables below, in the header's user_version
constexpr int kMostBytesOfAValue = 64 << 20;
constexpr int kStepsAtOnce = 10'000;  // of SQLite's virtual machine, between looks at how many are left

// A store holds these tables and nothing else. Stores of 0.1.0 have none called asked, and no column asked_in; those of
// before questions had groups have no column question_group.
const std::map<std::string, std::string> kTables = {
    {"runs", R"sql(CREATE TABLE runs(
  id INTEGER PRIMARY KEY,
  model_name TEXT NOT NULL, model_hash TEXT NOT NULL, dtype TEXT NOT NULL, device TEXT NOT NULL,
  protocol TEXT NOT NULL, protocol_hash TEXT NOT NULL, seed INTEGER NOT NULL, strength_unit TEXT NOT NULL,
  introspect_version TEXT NOT NULL, torch_version TEXT NOT NULL,
  UNIQUE(model_name, model_hash, dtype, device, protocol, protocol_hash, seed, strength_unit,
         introspect_version, torch_version)))sql"},
    {"cells", R"sql(CREATE TABLE cells(
  key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL, base_key TEXT NOT NULL,
  run INTEGER NOT NULL REFERENCES runs(id), written TEXT NOT NULL,
  concept TEXT NOT NULL, strength REAL NOT NULL, first_layer INTEGER NOT NULL, last_layer INTEGER NOT NULL,
  question TEXT NOT NULL, question_kind TEXT NOT NULL, kind TEXT NOT NULL, null_index INTEGER NOT NULL,
  paraphrase INTEGER NOT NULL, place INTEGER NOT NULL, part_first REAL NOT NULL, part_last REAL NOT NULL,
  asked_in TEXT NOT NULL, question_group TEXT NOT NULL DEFAULT ''))sql"},
    {"asked", R"sql(CREATE TABLE asked(
  hash INTEGER NOT NULL UNIQUE, run INTEGER NOT NULL REFERENCES runs(id),
  key TEXT NOT NULL, base_key TEXT NOT NULL,
  concept TEXT NOT NULL, strength REAL NOT NULL, first_layer INTEGER NOT NULL, last_layer INTEGER NOT NULL,
  question TEXT NOT NULL, question_kind TEXT NOT NULL, kind TEXT NOT NULL, null_index INTEGER NOT NULL,
  paraphrase INTEGER NOT NULL, place INTEGER NOT NULL, part_first REAL NOT NULL, part_last REAL NOT NULL,
  asked_in TEXT NOT NULL, question_group TEXT NOT NULL DEFAULT ''))sql"},
};

/// "name TYPE" of the columns that a table must have.
std::vector<std::string> needed_columns(const std::string& table) {
  if (table == "runs")
    return {"id INTEGER",         "model_name TEXT",         "model_hash TEXT",    "dtype TEXT",
            "device TEXT",        "protocol TEXT",           "protocol_hash TEXT", "seed INTEGER",
            "strength_unit TEXT", "introspect_version TEXT", "torch_version TEXT"};
  return {"key TEXT",           "value TEXT",    "base_key TEXT",       "run INTEGER",        "written TEXT",
          "concept TEXT",       "strength REAL", "first_layer INTEGER", "last_layer INTEGER", "question TEXT",
          "question_kind TEXT", "kind TEXT",     "null_index INTEGER",  "paraphrase INTEGER", "place INTEGER",
          "part_first REAL",    "part_last REAL"};
}

/// The words of a statement in capitals.
std::vector<std::string> words_of(const std::string& sql) {
  std::vector<std::string> out(1);
  for (const char c : sql)
    if (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_')
      out.back() += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    else if (!out.back().empty())
      out.emplace_back();
  return out;
}

/// Columns of plain values and lists of them: nothing that computes, which could take for ever or do harm.
bool is_plain(const std::string& type, const std::string& name, const std::string& table,
              const std::string& sql) {
  if (kTables.count(table) == 0 || (type == "table" && name != table)) return false;
  if (type == "index" && sql.empty()) return true;  // SQLite's own, of a key
  if (type != "table" && type != "index") return false;
  static const std::set<std::string> kComputes = {"AS",    "CHECK",   "COLLATE", "GENERATED",
                                                  "GLOB",  "LIKE",    "SELECT",  "TRIGGER",
                                                  "USING", "VIRTUAL", "WITHOUT", "WHERE"};
  const auto words = words_of(sql);
  // An index has the brackets of its columns only: no function is called.
  const bool is_expression = sql.find_first_of("\"`[]|&+*/%<>~@:?$;") != std::string::npos ||
                             sql.find("--") != std::string::npos ||
                             (type == "index" && std::count(sql.begin(), sql.end(), '(') != 1);
  return !is_expression &&
         std::none_of(words.begin(), words.end(), [](const auto& word) { return kComputes.count(word) > 0; });
}

std::set<std::string> columns_of(const Database& database, const std::string& table) {
  std::set<std::string> out;
  Statement found(database, "SELECT name, type FROM pragma_table_info('" + table + "')");
  while (found.step()) {
    const auto name = found.text();
    out.insert(name + " " + found.text());
  }
  return out;
}

/// The column of a setting's field; "group" is a word of SQL's own.
std::string column_of(const std::string& field) {
  return field == "group" ? "question_group" : field;
}

/// The columns that tables of earlier releases lack, and what stands for them in what was written before.
const std::vector<std::pair<std::string, std::string>> kLaterColumns = {{"asked_in", kNotRecorded},
                                                                        {"question_group", ""}};

/// Those of kLaterColumns that a table lacks.
std::map<std::string, std::string> missing_columns(const Database& database, const std::string& table) {
  const auto columns = columns_of(database, table);
  std::map<std::string, std::string> out;
  for (const auto& [column, before] : kLaterColumns)
    if (columns.count(column + " TEXT") == 0) out[column] = before;
  return out;
}

/// Refuses another program's database, and one whose tables are not what they seem: a view may never end, a trigger writes.
void check_is_store(const Database& database) {
  const auto& path = database.path.string();
  check<IoError>(number(database, "PRAGMA application_id") == kApplicationId, "Store: ", path,
                 ": the file must be a store of this library, got another program's database");
  const auto layout = number(database, "PRAGMA user_version");
  check<IoError>(layout == kLayout, "Store: ", path, ": the file must have layout ", kLayout, ", got layout ",
                 layout, " of ", layout < kLayout ? "an older" : "a newer",
                 " introspect: go on with that one, or in another file");
  Statement found(database, "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master");
  while (found.step()) {
    const auto type = found.text(), name = found.text(), table = found.text(), sql = found.text();
    check<IoError>(is_plain(type, name, table, sql), "Store: ", path,
                   ": a store holds plain tables of its own only, got ", type, " '", name.substr(0, 80),
                   "' (", sql.substr(0, 80), ")");
  }
  for (const auto* table : {"runs", "cells"}) {
    const auto columns = columns_of(database, table);
    for (const auto& column : needed_columns(table))
      check<IoError>(columns.count(column) > 0, "Store: ", path, ": table ", table, " must have the column ",
                     column, ", got ", columns.size(), " others");
  }
}

int count_steps(void* database) {
  auto& left = static_cast<const Database*>(database)->steps_left;
  left -= kStepsAtOnce;
  return left < 0 ? 1 : 0;  // 1 interrupts the statement
}

/// As SQLite takes file names with options.
std::string uri(const std::filesystem::path& path, const std::string& options) {
  std::string out = "file:";
  constexpr auto kHex = "0123456789ABCDEF";
  for (const unsigned char c : std::filesystem::absolute(path).string())
    if (std::isalnum(c) != 0 ||
        std::string_view("/-_.~").find(static_cast<char>(c)) != std::string_view::npos)
      out += static_cast<char>(c);
    else
      (out += '%') += {kHex[c >> 4], kHex[c & 15]};
  return out + (options.empty() ? "" : "?" + options);
}

void connect(Database& database, const std::filesystem::path& file, int flags, const std::string& options) {
  if (sqlite3_open_v2(uri(file, options).c_str(), &database.handle,
                      flags | SQLITE_OPEN_URI | SQLITE_OPEN_FULLMUTEX, nullptr) != SQLITE_OK)
    database.fail("cannot open");
  sqlite3_busy_timeout(database.handle, kBusyMilliseconds);
  sqlite3_limit(database.handle, SQLITE_LIMIT_LENGTH, kMostBytesOfAValue);
  sqlite3_db_config(database.handle, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(database.handle, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  sqlite3_db_config(database.handle, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, nullptr);
  sqlite3_db_config(database.handle, SQLITE_DBCONFIG_ENABLE_VIEW, 0, nullptr);
  sqlite3_progress_handler(database.handle, kStepsAtOnce, count_steps, &database);
}

/// Write-ahead logging: a commit survives the death of the process; readers do not wait for the writer.
/// Where several processes switch at once SQLite refuses at once instead of waiting as it does elsewhere.
void use_write_ahead_log(const Database& database) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kBusyMilliseconds);
  for (;;) {
    database.allow();
    const int status = sqlite3_exec(database.handle, "PRAGMA journal_mode=WAL", nullptr, nullptr, nullptr);
    if (status == SQLITE_OK) return;
    if (status != SQLITE_BUSY || std::chrono::steady_clock::now() > deadline)
      database.fail("cannot switch to write-ahead logging");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

/// Whether a failure may be of the place and not of the file.
bool is_of_the_place(const DatabaseError& error) {
  switch (error.code() & 0xff) {
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_IOERR:
    case SQLITE_FULL:
    case SQLITE_PERM:
      return true;
    default:
      return false;
  }
}

bool is_empty(const Database& database) {
  return number(database, "SELECT count(*) FROM sqlite_master") == 0;
}

std::unique_ptr<Database> new_database(const std::filesystem::path& path) {
  auto database = std::make_unique<Database>();
  database->path = path;
  return database;
}

bool holds_something(const std::filesystem::path& file) {
  std::error_code problem;
  const auto size = std::filesystem::file_size(file, problem);
  return !problem && size > 0;
}

std::filesystem::path new_folder() {
  auto name = (std::filesystem::temp_directory_path() / "introspect-store-XXXXXX").string();
  check<IoError>(mkdtemp(name.data()) != nullptr, "Store: cannot make a folder for a copy in ",
                 std::filesystem::temp_directory_path().string());
  return name;
}

/// As it stands: nothing can be written here, not even what SQLite needs to share a write-ahead log.
std::unique_ptr<Database> open_where_nothing_can_be_written(const std::filesystem::path& path) {
  auto database = new_database(path);
  auto file = path;
  const auto log = log_of(path);
  if (holds_something(log)) {
    database->copy = new_folder();
    file = database->copy / "store.sqlite";
    std::error_code problem;
    std::filesystem::copy_file(path, file, problem);
    if (!problem) std::filesystem::copy_file(log, log_of(file), problem);
    check<IoError>(!problem, "Store: ", path.string(), ": cannot be copied to ", database->copy.string(),
                   " to be read: ", problem.message());
    connect(*database, file, SQLITE_OPEN_READWRITE, "");
  } else {
    connect(*database, file, SQLITE_OPEN_READONLY, "immutable=1");
  }
  check_is_store(*database);
  database->run("PRAGMA query_only=1");
  return database;
}

/// Adds what stores of 0.1.0 do not hold, all of it or nothing.
void bring_up_to_date(const Database& database) {
  const auto is_whole = [&] {
    return has_asked(database) && missing_columns(database, "cells").empty() &&
           missing_columns(database, "asked").empty();
  };
  if (is_whole()) return;
  database.in_transaction([&] {
    if (!has_asked(database)) database.run(kTables.at("asked"));
    for (const std::string table : {"cells", "asked"})
      for (const auto& [column, before] : missing_columns(database, table))
        database.run(
            concat("ALTER TABLE ", table, " ADD COLUMN ", column, " TEXT NOT NULL DEFAULT '", before, "'"));
  });
}

}  // namespace

Database::~Database() {
  sqlite3_close(handle);
  std::error_code ignored;
  if (!copy.empty()) std::filesystem::remove_all(copy, ignored);
}

void Database::fail(std::string_view what) const {
  const int code = sqlite3_extended_errcode(handle);
  const bool is_endless = (code & 0xff) == SQLITE_INTERRUPT && steps_left < 0;
  throw DatabaseError(
      concat("Store: ", path.string(), ": ", what, ": ",
             is_endless ? "it takes longer than the file's size can explain: the file is damaged"
                        : sqlite3_errmsg(handle)),
      code);
}

void Database::run(const std::string& sql) const {
  allow();
  if (sqlite3_exec(handle, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK)
    fail("cannot run '" + sql.substr(0, 80) + "'");
}

void Database::check_can_write() const {
  check<IoError>(why_read_only.empty(), "Store: ", path.string(), ": it can only be read: ", why_read_only);
}

void Database::allow() const {
  std::error_code problem;
  auto bytes = std::filesystem::file_size(path, problem);
  if (problem) bytes = 0;
  if (const auto log = std::filesystem::file_size(log_of(path), problem); !problem) bytes += log;
  // A row takes a hundred bytes or more, and some hundred steps.
  steps_left = 20'000'000 + 20 * static_cast<int64_t>(bytes);
}

std::unique_ptr<Database> open_to_write(const std::filesystem::path& path) {
  std::error_code problem;
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), problem);
  check<IoError>(!problem, "Store: ", path.string(), ": cannot make the folder: ", problem.message());
  const bool was_there = holds_something(path);
  if (const auto damage = damage_of_log(log_of(path)); was_there && !damage.empty())
    throw IoError(concat("Store: ", damage,
                         ". To go on with the rest, move that file away; introspect store info ",
                         "says what the rest is"));
  try {
    auto database = new_database(path);
    connect(*database, path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "");
    const bool is_new = is_empty(*database);
    // A store that another process makes in between shows its tables and its marks together.
    if (!is_new) check_is_store(*database);
    use_write_ahead_log(*database);
    database->run("PRAGMA synchronous=NORMAL");
    if (is_new)
      database->in_transaction([&] {
        if (!is_empty(*database)) return;  // another process was quicker
        for (const auto& [name, table] : kTables) database->run(table);
        database->run(concat("PRAGMA application_id=", kApplicationId));
        database->run(concat("PRAGMA user_version=", kLayout));
      });
    else if (sqlite3_db_readonly(database->handle, "main") == 1)
      database->why_read_only = "the file or its folder cannot be written";
    else
      bring_up_to_date(*database);
    return database;
  } catch (const DatabaseError& error) {
    if (!was_there || !is_of_the_place(error)) throw;
    auto database = open_where_nothing_can_be_written(path);
    database->why_read_only = error.what();
    return database;
  }
}

std::unique_ptr<Database> open_to_read(const std::filesystem::path& path) {
  check<IoError>(std::filesystem::exists(path), "Store: there is no file ", path.string());
  const auto log = log_of(path);
  const auto damage = damage_of_log(log);
  std::unique_ptr<Database> database;
  try {
    database = new_database(path);
    // With the rights to write SQLite takes its own files away again when it is done; of ours it changes nothing.
    connect(*database, path, SQLITE_OPEN_READWRITE, "");
    if (holds_something(log))
      sqlite3_db_config(database->handle, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
    database->run("PRAGMA query_only=1");
    check<IoError>(!is_empty(*database), "Store: ", path.string(),
                   ": the file must be a store, got an empty one", damage.empty() ? "" : ": ", damage);
    check_is_store(*database);
  } catch (const DatabaseError& error) {
    if (!is_of_the_place(error)) throw;
    database = open_where_nothing_can_be_written(path);
  }
  database->why_read_only = "it was opened to be read";
  database->damage = damage;
  return database;
}

bool has_asked(const Database& database) {
  return number(database, "SELECT count(*) FROM sqlite_master WHERE name = 'asked'") > 0;
}

std::string setting_columns() {
  std::string out = "base_key";
  Setting any;
  for_each_field(any, [&](const char* name, const auto&) { out += concat(", ", column_of(name)); });
  return out;
}

std::string setting_columns(const Database& database, const std::string& table) {
  std::string out = table + ".base_key";
  const auto missing = missing_columns(database, table);
  Setting any;
  for_each_field(any, [&](const std::string& name, const auto&) {
    const auto found = missing.find(column_of(name));
    out += found == missing.end() ? concat(", ", table, ".", column_of(name))
                                  : concat(", '", found->second, "'");
  });
  return out;
}

std::string setting_marks(int more) {
  Setting any;
  for_each_field(any, [&](const char*, const auto&) { ++more; });
  std::string out = "?";
  for (; more > 0; --more) out += ",?";  // and one for base_key
  return out;
}

// ---- statements -----------------------------------------------------------------------------------------------------

Statement::Statement(const Database& database, const std::string& sql) : database_(database) {
  database.allow();
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(database.handle, sql.c_str(), -1, &statement, nullptr) != SQLITE_OK)
    database.fail("cannot read the store");
  statement_.reset(statement);
}

Statement& Statement::bind(const std::string& text) {
  sqlite3_bind_text64(statement_.get(), ++bound_, text.data(), text.size(), SQLITE_STATIC, SQLITE_UTF8);
  return *this;
}

Statement& Statement::bind(int64_t number) {
  sqlite3_bind_int64(statement_.get(), ++bound_, number);
  return *this;
}

Statement& Statement::bind(double number) {
  sqlite3_bind_double(statement_.get(), ++bound_, number);
  return *this;
}

Statement& Statement::bind(const Origin& origin) {
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

Statement& Statement::bind(const Cell& cell) {
  bind(cell.base_key);
  for_each_field(static_cast<const Setting&>(cell), [&](const std::string& name, const auto& value) {
    if constexpr (std::is_same_v<decltype(value), const std::string&>)
      bind(name == "paraphrase" && value.empty() ? kNoParaphrase : value);
    else
      bind(value);
  });
  return *this;
}

bool Statement::step() {
  column_ = 0;
  const int status = sqlite3_step(statement_.get());
  if (status != SQLITE_ROW && status != SQLITE_DONE) database_.fail("cannot read or write cells");
  return status == SQLITE_ROW;
}

void Statement::reset() {
  database_.allow();
  sqlite3_reset(statement_.get());
  bound_ = 0;
}

std::string Statement::text() {
  const auto* const text = reinterpret_cast<const char*>(sqlite3_column_text(statement_.get(), column_));
  const auto n = static_cast<size_t>(sqlite3_column_bytes(statement_.get(), column_++));
  return text ? std::string(text, n) : std::string();
}

Origin Statement::origin() {
  Origin out;
  for (auto* field :
       {&out.model_name, &out.model_hash, &out.dtype, &out.device, &out.protocol, &out.protocol_hash})
    *field = text();
  out.seed = static_cast<uint64_t>(integer());
  for (auto* field : {&out.strength_unit, &out.introspect_version, &out.torch_version}) *field = text();
  return out;
}

Cell Statement::setting() {
  Cell out;
  out.base_key = text();
  for_each_field(static_cast<Setting&>(out), [&](const char*, auto& value) {
    using Field = std::remove_reference_t<decltype(value)>;
    if constexpr (std::is_same_v<Field, std::string>)
      value = text();
    else if constexpr (std::is_same_v<Field, double>)
      value = real();
    else
      value = integer();
  });
  if (out.kind == "null") out.kind = "random";  // as it was called once
  if (out.paraphrase == kNoParaphrase) out.paraphrase.clear();
  return out;
}

int64_t number(const Database& database, const std::string& sql) {
  Statement statement(database, sql);
  check<IoError>(statement.step(), "Store: '", sql, "' must give a number, got nothing");
  return statement.integer();
}

}  // namespace introspect::experiments

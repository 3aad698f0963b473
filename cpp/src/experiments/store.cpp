#include "introspect/experiments/store.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

#include "experiments/reading_check.h"
#include "experiments/store_database.h"

namespace introspect::experiments {
namespace {

constexpr auto kRow = "SELECT key, value, written, ";  // then the setting's and the origin's columns

std::string all_rows(const Database& database) {
  return concat(kRow, setting_columns(database, "cells"), ", ", kOriginColumns,
                " FROM cells JOIN runs ON runs.id = cells.run ORDER BY cells.rowid");
}

StoredCell row(Statement& found) {
  auto key = found.text(), value = found.text(), written = found.text();
  StoredCell out{found.setting(), found.origin(), std::move(written)};
  out.cell.key = std::move(key);
  out.cell.value = std::move(value);
  return out;
}

/// The number of a row of runs, which is made if there is none.
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

/// What is asked for by a run, as one number.
int64_t hash_of(int64_t run, const Cell& cell) {
  constexpr char s = 31;  // between fields
  auto text = concat(run, s, cell.key, s, cell.base_key);
  // As stores have hashed it since before questions could be asked elsewhere.
  for_each_field(static_cast<const Setting&>(cell), [&](const std::string& name, const auto& value) {
    if (name == "asked_in" || name == "group") return;
    text += name == "paraphrase" && cell.paraphrase.empty() ? concat(s, -1) : concat(s, value);
  });
  if (cell.asked_in != kOwnConversation) text += concat(s, cell.asked_in);
  if (!cell.group.empty()) text += concat(s, s, cell.group);
  return static_cast<int64_t>(std::stoull(sha256_hex(text).substr(0, 16), nullptr, 16));
}

/// Adds to what runs have asked for; to be used in a transaction.
class Asking {
 public:
  explicit Asking(const Database& database)
      : statement_(database, concat("INSERT INTO asked(hash, run, key, ", setting_columns(), ") VALUES(",
                                    setting_marks(3), ") ON CONFLICT DO NOTHING")) {}
  void add(int64_t run, const Cell& cell) {
    statement_.bind(hash_of(run, cell)).bind(run).bind(cell.key).bind(cell).step();
    statement_.reset();
  }

 private:
  Statement statement_;
};

/// The numbers of rows of runs, by what they say.
class Runs {
 public:
  explicit Runs(const Database& database) : database_(database) {}
  int64_t at(const Origin& made) {
    const auto [id, is_new] = ids_.try_emplace(
        {made.model_name, made.model_hash, made.dtype, made.device, made.protocol, made.protocol_hash,
         made.seed, made.strength_unit, made.introspect_version, made.torch_version},
        0);
    if (is_new) id->second = run_of(database_, made);
    return id->second;
  }

 private:
  const Database& database_;
  std::map<std::tuple<std::string, std::string, std::string, std::string, std::string, std::string, uint64_t,
                      std::string, std::string, std::string>,
           int64_t>
      ids_;
};

std::vector<StoredCell> read_asked(const Database& database) {
  std::vector<StoredCell> out;
  if (!has_asked(database)) return out;
  Statement found(
      database, concat("SELECT asked.key, coalesce(theirs.value, ''), coalesce(theirs.written, ''), ",
                       setting_columns(database, "asked"), ", ", kOriginColumns,
                       " FROM asked JOIN runs ON runs.id = asked.run LEFT JOIN (SELECT key, value, written ",
                       "FROM cells) theirs ON theirs.key = asked.key ORDER BY asked.rowid"));
  while (found.step()) out.push_back(row(found));
  return out;
}

}  // namespace

struct Store::Holder {
  std::unique_ptr<Database> database;
};

Store::Store(std::unique_ptr<Holder> holder) : holder_(std::move(holder)) {}
Store::~Store() = default;

const Database& Store::database() const {
  return *holder_->database;
}

std::shared_ptr<Store> Store::open(const std::filesystem::path& path, bool read_only) {
  auto holder = std::make_unique<Holder>();
  holder->database = read_only ? open_to_read(path) : open_to_write(path);
  return std::shared_ptr<Store>(new Store(std::move(holder)));
}

std::optional<std::string> Store::get(const std::string& key) const {
  const std::lock_guard lock(database().mutex);
  Statement found(database(), "SELECT value FROM cells WHERE key = ?");
  if (!found.bind(key).step()) return std::nullopt;
  return found.text();
}

int64_t Store::put_many(const std::vector<Cell>& cells, const Origin& origin) {
  if (cells.empty()) return 0;
  const std::lock_guard lock(database().mutex);
  int64_t added = 0;
  database().in_transaction([&] {
    const auto id = run_of(database(), origin);
    Statement insert(database(), concat("INSERT INTO cells(run, key, value, ", setting_columns(),
                                        ", written) VALUES(", setting_marks(3),
                                        ", strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) ON CONFLICT DO NOTHING"));
    for (const auto& cell : cells) {
      insert.bind(id).bind(cell.key).bind(cell.value).bind(cell).step();
      added += sqlite3_changes(database().handle);
      insert.reset();
    }
  });
  return added;
}

void Store::put_asked(const std::vector<Cell>& cells, const Origin& origin) {
  if (cells.empty()) return;
  const std::lock_guard lock(database().mutex);
  database().in_transaction([&] {
    const auto id = run_of(database(), origin);
    Asking asking(database());
    for (const auto& cell : cells) asking.add(id, cell);
  });
}

std::vector<StoredCell> Store::asked() const {
  const std::lock_guard lock(database().mutex);
  return read_asked(database());
}

int64_t Store::size() const {
  const std::lock_guard lock(database().mutex);
  return number(database(), "SELECT coalesce(sum(1), 0) FROM cells");  // count(*) cannot be interrupted
}

std::vector<StoredCell> Store::rows() const {
  const std::lock_guard lock(database().mutex);
  Statement found(database(), all_rows(database()));
  std::vector<StoredCell> out;
  while (found.step()) out.push_back(row(found));
  return out;
}

std::vector<StoredRun> Store::runs() const {
  const std::lock_guard lock(database().mutex);
  Statement found(database(),
                  concat("SELECT sum(1), min(written), max(written), ", kOriginColumns,
                         " FROM cells JOIN runs ON runs.id = cells.run GROUP BY runs.id ORDER BY runs.id"));
  std::vector<StoredRun> out;
  while (found.step()) {
    const auto cells = found.integer();
    auto first = found.text(), last = found.text();
    out.push_back({found.origin(), cells, std::move(first), std::move(last)});
  }
  return out;
}

std::vector<Store::Damaged> Store::damaged() const {
  std::vector<Damaged> out;
  for (const auto& [cell, origin, written] : rows())
    if (auto what = problem_of(cell); !what.empty()) out.push_back({cell.key, std::move(what)});
  return out;
}

Merged Store::merge(const std::filesystem::path& other, bool sound_only,
                    const std::filesystem::path& unless_in) {
  check<IoError>(std::filesystem::exists(other), "Store::merge: there is no file ", other.string());
  check<std::invalid_argument>(!std::filesystem::equivalent(other, path()),
                               "Store::merge: a store cannot be merged into itself, got ", other.string());
  const auto theirs = open_to_read(other);  // refuses what is no store
  check<IoError>(theirs->damage.empty(), "Store::merge: ", theirs->damage,
                 ". To take what is left, move that file away");
  const auto known = unless_in.empty() ? nullptr : open(unless_in, /*read_only=*/true);
  const std::lock_guard lock(database().mutex);
  Merged out;
  database().in_transaction([&] {
    Runs runs(database());
    Statement here(database(), "SELECT value FROM cells WHERE key = ?");
    Statement insert(database(), concat("INSERT INTO cells(run, key, value, ", setting_columns(),
                                        ", written) VALUES(", setting_marks(4), ")"));
    Statement found(*theirs, all_rows(*theirs));
    while (found.step()) {
      const auto [cell, made, written] = row(found);
      if (known && known->get(cell.key)) continue;
      if (sound_only && !problem_of(cell).empty()) {
        ++out.damaged;
        continue;
      }
      here.reset();
      if (here.bind(cell.key).step()) {
        auto kept = here.text();
        if (kept == cell.value)
          ++out.same;
        else
          out.conflicts.push_back({cell.key, std::move(kept), cell.value});
        continue;
      }
      insert.reset();
      insert.bind(runs.at(made)).bind(cell.key).bind(cell.value).bind(cell).bind(written).step();
      ++out.added;
    }
    const auto asked = known ? std::vector<StoredCell>{} : read_asked(*theirs);
    if (asked.empty()) return;
    Asking asking(database());
    for (const auto& [cell, made, written] : asked) asking.add(runs.at(made), cell);
  });
  return out;
}

std::vector<std::string> Store::problems() const {
  const std::lock_guard lock(database().mutex);
  Statement found(database(), "PRAGMA integrity_check");
  std::vector<std::string> out;
  while (found.step()) out.push_back(found.text());
  if (out == std::vector<std::string>{"ok"}) out.clear();
  if (!database().damage.empty()) out.push_back(database().damage);
  return out;
}

void Store::vacuum() {
  const std::lock_guard lock(database().mutex);
  database().check_can_write();
  database().run("VACUUM");
  database().run("PRAGMA wal_checkpoint(TRUNCATE)");
}

bool Store::can_write() const {
  return database().why_read_only.empty();
}

void Store::check_can_write() const {
  database().check_can_write();
}

const std::filesystem::path& Store::path() const {
  return database().path;
}

}  // namespace introspect::experiments

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/experiments/store.h"

using introspect::experiments::Cell;
using introspect::experiments::Origin;
using introspect::experiments::Store;
namespace fs = std::filesystem;

namespace {

struct Folder {
  fs::path path = fs::temp_directory_path() / ("introspect-store-" + std::to_string(getpid()));
  Folder() { fs::remove_all(path); }
  ~Folder() { fs::remove_all(path); }
};

/// Runs `body` in another process and gives its id. It leaves without running the test framework's exit code.
template <typename Body>
pid_t in_another_process(const Body& body) {
  const auto child = fork();
  if (child != 0) return child;
  try {
    body();
  } catch (...) {
    _exit(1);
  }
  _exit(0);
}

Origin origin(uint64_t seed = 0) {
  return {"tiny", "ab", "float32", "cpu", "mine", "cd", seed, "absolute", "0.1.0", "2.13.0"};
}

bool put(const std::shared_ptr<Store>& store, const std::string& key, const std::string& value) {
  return store->put({key, value}, origin());
}

int exit_status(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

}  // namespace

TEST_CASE("a store gives back what was put, and the first of two values for one key",
          "[experiments][store]") {
  const Folder folder;
  const auto store = Store::open(folder.path / "a" / "cells.sqlite");
  CHECK_FALSE(store->get("k").has_value());
  const std::string value("{\"x\": \"\xE6\x98\xAF\"}");
  CHECK(put(store, "k", value));
  CHECK_FALSE(put(store, "k", "other"));
  CHECK(store->get("k") == value);
  CHECK(store->size() == 1);
  CHECK(Store::open(store->path())->get("k") == value);
}

TEST_CASE("a row says what was asked and what made it", "[experiments][store]") {
  const Folder folder;
  const auto store = Store::open(folder.path / "cells.sqlite");
  const Cell cell{"k",
                  "{}",
                  "b",
                  {{"cat", -2.5, 3, 7, 4, 2, 0.25, 0.5},
                   {"Is ice hot?", "control", "in one word", "with_info"},
                   "random"}};
  const auto made = origin(UINT64_MAX);
  REQUIRE(store->put_many({cell, {"b", "{}"}, {"k", "other"}}, made) == 2);
  const auto rows = store->rows();
  REQUIRE(rows.size() == 2);
  const auto& row = rows.at(0);
  CHECK(std::tie(row.cell.key, row.cell.value, row.cell.base_key, row.cell.concept_name, row.cell.strength) ==
        std::tie(cell.key, cell.value, cell.base_key, cell.concept_name, cell.strength));
  CHECK(std::tie(row.cell.first_layer, row.cell.last_layer, row.cell.question, row.cell.question_kind) ==
        std::tie(cell.first_layer, cell.last_layer, cell.question, cell.question_kind));
  CHECK(std::tie(row.cell.kind, row.cell.null_index) == std::tie(cell.kind, cell.null_index));
  CHECK(std::tie(row.cell.paraphrase, row.cell.place, row.cell.part_first, row.cell.part_last) ==
        std::tie(cell.paraphrase, cell.place, cell.part_first, cell.part_last));
  CHECK(row.cell.asked_in == "with_info");
  CHECK(rows.at(1).cell.paraphrase.empty());
  CHECK(std::tie(row.origin.model_name, row.origin.model_hash, row.origin.dtype, row.origin.device) ==
        std::tie(made.model_name, made.model_hash, made.dtype, made.device));
  CHECK(std::tie(row.origin.protocol, row.origin.protocol_hash, row.origin.seed, row.origin.strength_unit) ==
        std::tie(made.protocol, made.protocol_hash, made.seed, made.strength_unit));
  CHECK(std::tie(row.origin.introspect_version, row.origin.torch_version) ==
        std::tie(made.introspect_version, made.torch_version));
  CHECK(row.written.size() == std::string("2026-01-31T23:59:59.123Z").size());
  CHECK(row.written.back() == 'Z');

  put(store, "of another origin", "{}");
  const auto runs = store->runs();
  REQUIRE(runs.size() == 2);
  CHECK(runs[0].cells == 2);
  CHECK(runs[0].origin.seed == UINT64_MAX);
  CHECK(runs[0].first_written == row.written);
  CHECK(runs[1].cells == 1);
}

TEST_CASE("what several protocols ask for says where each of them asked it", "[experiments][store]") {
  const Folder folder;
  const auto store = Store::open(folder.path / "cells.sqlite"),
             other = Store::open(folder.path / "other.sqlite");
  Cell cell{"k", "1"};
  cell.question_kind = cell.kind = "control";
  auto theirs = origin();
  theirs.protocol = "theirs";
  REQUIRE(store->put(cell, origin()));
  store->put_asked({cell}, origin());
  cell.asked_in = "with_info";
  store->put_asked({cell}, theirs);
  store->put_asked({cell}, theirs);
  other->merge(store->path());
  for (const auto& one : {store, other}) {
    std::vector<std::string> out;
    for (const auto& row : one->asked()) out.push_back(row.origin.protocol + " " + row.cell.asked_in);
    CHECK(out == std::vector<std::string>{"mine own", "theirs with_info"});
  }
}

TEST_CASE("a batch of cells is written whole or not at all", "[experiments][store]") {
  const Folder folder;
  const auto store = Store::open(folder.path / "cells.sqlite");
  put(store, "before", "{}");
  Cell broken{"broken", "{}"};
  broken.strength = std::nan("");  // SQLite has no NaN: the column refuses it
  CHECK_THROWS_AS(store->put_many({{"fine", "{}"}, broken}, origin()), introspect::IoError);
  CHECK(store->size() == 1);
  CHECK_FALSE(store->get("fine").has_value());
  CHECK(put(store, "fine", "{}"));
}

TEST_CASE("merging takes what is missing, keeps what is there and names what differs",
          "[experiments][store]") {
  const Folder folder;
  const auto ours = Store::open(folder.path / "ours.sqlite"),
             theirs = Store::open(folder.path / "theirs.sqlite");
  put(ours, "same", "1");
  put(ours, "differs", "2");
  put(ours, "only ours", "3");
  put(theirs, "same", "1");
  put(theirs, "differs", "4");
  theirs->put({"only theirs", "5"}, origin(7));
  const auto merged = ours->merge(theirs->path());
  CHECK(merged.added == 1);
  CHECK(merged.same == 1);
  REQUIRE(merged.conflicts.size() == 1);
  CHECK(merged.conflicts[0].key == "differs");
  CHECK(merged.conflicts[0].kept == "2");
  CHECK(merged.conflicts[0].other == "4");
  CHECK(ours->get("differs") == "2");
  CHECK(theirs->size() == 3);
  const auto rows = ours->rows();
  REQUIRE(rows.size() == 4);
  CHECK(rows[3].cell.key == "only theirs");
  CHECK(rows[3].origin.seed == 7);
  CHECK(rows[3].written == theirs->rows()[2].written);

  const auto again = ours->merge(theirs->path());
  CHECK(again.added == 0);
  CHECK(again.same == 2);
  CHECK_THROWS_AS(ours->merge(folder.path / "missing.sqlite"), introspect::IoError);
  CHECK_FALSE(fs::exists(folder.path / "missing.sqlite"));
  CHECK_THROWS_AS(ours->merge(ours->path()), std::invalid_argument);
  std::ofstream(folder.path / "notes.txt") << std::string(5000, 'x');
  CHECK_THROWS_AS(ours->merge(folder.path / "notes.txt"), introspect::IoError);
  CHECK(ours->size() == 4);
}

TEST_CASE("a vacuumed store is sound and whole", "[experiments][store]") {
  const Folder folder;
  const auto store = Store::open(folder.path / "cells.sqlite");
  for (int i = 0; i < 100; ++i) put(store, std::to_string(i), std::string(1000, 'x'));
  store->vacuum();
  CHECK(store->problems().empty());
  CHECK(store->size() == 100);
}

TEST_CASE("a killed process leaves every cell it had finished", "[experiments][store]") {
  const Folder folder;
  const auto path = folder.path / "cells.sqlite";
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  const auto child = in_another_process([&] {
    const auto store = Store::open(path);
    for (int i = 0;; ++i) {
      put(store, std::to_string(i), "value " + std::to_string(i));
      if (write(ready[1], &i, sizeof i) != sizeof i) _exit(1);
    }
  });
  int last = 0;
  while (last < 200) REQUIRE(read(ready[0], &last, sizeof last) == sizeof last);
  kill(child, SIGKILL);
  CHECK(WIFSIGNALED(exit_status(child)));
  const auto store = Store::open(path);
  CHECK(store->problems().empty());
  CHECK(store->size() >= 201);
  for (int i = 0; i <= last; ++i) REQUIRE(store->get(std::to_string(i)) == "value " + std::to_string(i));
}

TEST_CASE("processes that open and fill one store at once lose nothing", "[experiments][store]") {
  const Folder folder;
  const auto path = folder.path / "cells.sqlite";
  constexpr int processes = 4, cells = 50;
  std::vector<pid_t> children;
  for (int p = 0; p < processes; ++p)
    children.push_back(in_another_process([&] {
      const auto store = Store::open(path);
      for (int i = 0; i < cells; ++i) {
        put(store, "shared " + std::to_string(i), "value");
        put(store, std::to_string(p) + " " + std::to_string(i), "value");
      }
    }));
  for (const auto child : children) CHECK(exit_status(child) == 0);
  CHECK(Store::open(path)->size() == cells * (processes + 1));
}

TEST_CASE("of several processes that make one store at once none is turned away", "[experiments][store]") {
  const Folder folder;
  for (int trial = 0; trial < 60; ++trial) {  // one process in 300 was, with SQLite's own waiting
    const auto path = folder.path / (std::to_string(trial) + ".sqlite");
    std::vector<pid_t> children;
    for (int p = 0; p < 6; ++p)
      children.push_back(in_another_process([&] { put(Store::open(path), std::to_string(p), "value"); }));
    for (const auto child : children) CHECK(exit_status(child) == 0);
    CHECK(Store::open(path)->size() == 6);
  }
}

TEST_CASE("a file that is not a store is refused and left alone", "[experiments][store]") {
  const Folder folder;
  fs::create_directories(folder.path);
  const auto path = folder.path / "notes.txt";
  const std::string text(5000, 'x');
  std::ofstream(path) << text;
  CHECK_THROWS_AS(Store::open(path), introspect::IoError);
  CHECK(fs::file_size(path) == text.size());
  CHECK_THROWS_AS(Store::open(folder.path), introspect::IoError);
  CHECK_THROWS_AS(Store::open(path / "below" / "cells.sqlite"), introspect::IoError);
}

TEST_CASE("a store whose tables are not plain ones is refused", "[experiments][store]") {
  const Folder folder;
  const auto path = folder.path / "cells.sqlite";
  const auto* change = GENERATE(
      "CREATE VIEW more AS SELECT 1", "CREATE TRIGGER t AFTER INSERT ON cells BEGIN DELETE FROM cells; END",
      "CREATE TABLE other(x)", "CREATE INDEX i ON cells(abs(strength))",
      "ALTER TABLE cells ADD COLUMN x TEXT GENERATED ALWAYS AS (hex(zeroblob(1000000000))) VIRTUAL",
      "ALTER TABLE cells RENAME COLUMN value TO other",
      "DROP TABLE cells; CREATE VIEW cells AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) "
      "SELECT i key, 'x' value, '' base_key, 1 run, '' written FROM n",
      "DROP TABLE cells; CREATE VIRTUAL TABLE cells USING fts3(key)");
  put(Store::open(path), "k", "v");
  sqlite3* raw = nullptr;
  REQUIRE(sqlite3_open(path.c_str(), &raw) == SQLITE_OK);
  INFO(change << ": " << sqlite3_errmsg(raw));
  REQUIRE(sqlite3_exec(raw, change, nullptr, nullptr, nullptr) == SQLITE_OK);
  sqlite3_close(raw);
  for (const bool read_only : {false, true})
    CHECK_THROWS_AS(Store::open(path, read_only), introspect::IoError);
  const auto ours = Store::open(folder.path / "ours.sqlite");
  CHECK_THROWS_AS(ours->merge(path), introspect::IoError);
}

TEST_CASE("a store that is read stays as it is, and takes nothing", "[experiments][store]") {
  const Folder folder;
  const auto path = folder.path / "cells.sqlite";
  put(Store::open(path), "k", "v");
  sqlite3* raw = nullptr;  // as a store that somebody has copied through another program
  REQUIRE(sqlite3_open(path.c_str(), &raw) == SQLITE_OK);
  REQUIRE(sqlite3_exec(raw, "PRAGMA journal_mode=DELETE", nullptr, nullptr, nullptr) == SQLITE_OK);
  sqlite3_close(raw);
  const auto content = [](const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const auto before = content(path);
  {
    const auto store = Store::open(path, true);
    CHECK(store->get("k") == "v");
    CHECK(store->rows().size() == 1);
    CHECK(store->problems().empty());
    CHECK_FALSE(store->can_write());
    CHECK_THROWS_WITH(put(store, "new", "v"), Catch::Contains("can only be read"));
    CHECK_THROWS_AS(store->vacuum(), introspect::IoError);
  }
  CHECK(Store::open(folder.path / "ours.sqlite")->merge(path).added == 1);
  CHECK(content(path) == before);
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(folder.path))
    files += entry.path().string().find("cells") != std::string::npos ? 1 : 0;
  CHECK(files == 1);
  CHECK_THROWS_AS(Store::open(folder.path / "missing.sqlite", true), introspect::IoError);
  CHECK_FALSE(fs::exists(folder.path / "missing.sqlite"));
}

TEST_CASE("a damaged write-ahead log is named, and one that a killed writer left is not",
          "[experiments][store]") {
  const Folder folder;
  fs::create_directories(folder.path);
  const auto path = folder.path / "cells.sqlite", log = folder.path / "cells.sqlite-wal";
  Store::open(path);
  // A killed process leaves its log behind.
  const auto child = in_another_process([&] {
    const auto store = Store::open(path);
    for (int i = 0; i < 20; ++i) put(store, std::to_string(i), std::string(3000, 'x'));
    kill(getpid(), SIGKILL);
  });
  exit_status(child);
  REQUIRE(fs::file_size(log) > 20 * 4096);
  const auto copies = folder.path / "copies";
  const auto opened = [&](const std::function<void(std::fstream&)>& change, uintmax_t size) {
    fs::remove_all(copies);
    fs::create_directories(copies);
    for (const auto& file : {path, log}) fs::copy_file(file, copies / file.filename());
    fs::resize_file(copies / log.filename(), size);
    std::fstream file(copies / log.filename(), std::ios::in | std::ios::out | std::ios::binary);
    change(file);
    file.close();
    return copies / path.filename();
  };
  const auto size = fs::file_size(log);
  const auto flip = [](std::streamoff at) {
    return [at](std::fstream& file) {
      file.seekg(at);
      const char c = static_cast<char>(file.get() ^ 1);
      file.seekp(at);
      file.put(c);
    };
  };
  const auto nothing = [](std::fstream&) {};
  // https://sqlite.org/fileformat.html: 32 bytes of header, then frames of 24 bytes and a page of 4,096.
  for (const std::streamoff at :
       {std::streamoff{0}, std::streamoff{17}, std::streamoff{25}, std::streamoff{32 + 9},
        std::streamoff{32 + 24 + 100}, std::streamoff{32 + 3 * 4120 + 2000}}) {
    const auto damaged = opened(flip(at), size);
    CHECK_THROWS_WITH(Store::open(damaged),
                      Catch::Contains("cells.sqlite-wal") && Catch::Contains("damaged"));
    const auto read = Store::open(damaged, true);
    REQUIRE(read->problems().size() == 1);
    CHECK_THAT(read->problems()[0], Catch::Contains("damaged"));
    CHECK_THROWS_AS(Store::open(folder.path / "ours.sqlite")->merge(damaged), introspect::IoError);
  }
  CHECK(Store::open(opened(nothing, size))->size() == 20);
  CHECK(Store::open(opened(nothing, size - 1000))->size() == 19);  // a frame that was being written
  CHECK(Store::open(opened(nothing, size - 4120 + 24), true)->problems().empty());
  CHECK(Store::open(opened(nothing, 32), true)->problems().empty());
  fs::remove(log);
  CHECK(Store::open(path)->problems().empty());
}

TEST_CASE("what runs ask for is theirs, whoever made the cells", "[experiments][store]") {
  const Folder folder;
  const auto store = Store::open(folder.path / "cells.sqlite");
  CHECK(store->asked().empty());
  Cell one{"k", ""}, two{"later", ""};
  one.question = two.question = "Is ice hot?";
  store->put_asked({one, two}, origin(1));
  store->put_asked({one}, origin(2));
  store->put_asked({one, two}, origin(1));
  put(store, "k", "value");
  auto asked = store->asked();
  REQUIRE(asked.size() == 3);
  CHECK(asked[0].cell.value == "value");
  CHECK(asked[1].cell.value.empty());
  CHECK(asked[2].origin.seed == 2);
  CHECK(asked[2].cell.value == "value");
  CHECK(store->size() == 1);
  const auto other = Store::open(folder.path / "other.sqlite");
  other->merge(store->path());
  CHECK(other->asked().size() == 3);
}

TEST_CASE("cells that are no readings are found, and left out of a merge that asks for it",
          "[experiments][store]") {
  const Folder folder;
  const auto store = Store::open(folder.path / "cells.sqlite");
  const std::map<std::string, std::string> cells = {
      {"sound", R"({"log_odds": 1.5, "p_yes": 0.5, "p_no": 0.1})"},
      {"failed", R"({"log_odds": null, "p_yes": null, "p_no": null})"},
      {"p", R"({"log_odds": 1.5, "p_yes": 7, "p_no": 0.1})"},
      {"rank",
       R"({"log_odds": 1, "p_yes": 0.5, "p_no": 0, "tokens": [{"token": "a", "id": 1, "log_prob": -1, "rank": 0}]})"},
      {"block", R"({"log_odds": 1, "p_yes": 0.5, "p_no": 0, "projections": {"a": {"x": 1}}})"},
      {"missing", R"({"log_odds": 1})"},
      {"text", "nothing"}};
  for (const auto& [key, value] : cells) put(store, key, value);
  std::set<std::string> damaged;
  for (const auto& one : store->damaged()) {
    damaged.insert(one.key);
    CHECK_FALSE(one.what.empty());
  }
  CHECK(damaged == std::set<std::string>{"p", "rank", "block", "missing", "text"});
  const auto merged = Store::open(folder.path / "other.sqlite")->merge(store->path(), true);
  CHECK(merged.added == 2);
  CHECK(merged.damaged == 5);
}

TEST_CASE("a store of another layout is refused and left alone", "[experiments][store]") {
  const Folder folder;
  const auto path = folder.path / "cells.sqlite";
  put(Store::open(path), "k", "v");
  const auto set_layout = [&](uint8_t layout) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(63);  // the last byte of user_version, big-endian at 60 (https://sqlite.org/fileformat.html)
    file.put(static_cast<char>(layout));
  };
  set_layout(9);
  CHECK_THROWS_WITH(Store::open(path), Catch::Contains("layout 9 of a newer introspect"));
  set_layout(0);
  CHECK_THROWS_WITH(Store::open(path), Catch::Contains("layout 0 of an older introspect"));
  set_layout(2);
  CHECK(Store::open(path)->get("k") == "v");
}

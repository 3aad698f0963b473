#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>

#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/experiments/store.h"

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
  store->put("k", value);
  store->put("k", "other");
  CHECK(store->get("k") == value);
  CHECK(store->size() == 1);
  CHECK(Store::open(store->path())->get("k") == value);
}

TEST_CASE("a killed process leaves every cell it had finished", "[experiments][store]") {
  const Folder folder;
  const auto path = folder.path / "cells.sqlite";
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  const auto child = in_another_process([&] {
    const auto store = Store::open(path);
    for (int i = 0;; ++i) {
      store->put(std::to_string(i), "value " + std::to_string(i));
      if (write(ready[1], &i, sizeof i) != sizeof i) _exit(1);
    }
  });
  int last = 0;
  while (last < 200) REQUIRE(read(ready[0], &last, sizeof last) == sizeof last);
  kill(child, SIGKILL);
  CHECK(WIFSIGNALED(exit_status(child)));
  const auto store = Store::open(path);
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
        store->put("shared " + std::to_string(i), "value");
        store->put(std::to_string(p) + " " + std::to_string(i), "value");
      }
    }));
  for (const auto child : children) CHECK(exit_status(child) == 0);
  CHECK(Store::open(path)->size() == cells * (processes + 1));
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

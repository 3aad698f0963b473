#include "introspect/io/share.h"

#include <cstdlib>
#include <fstream>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/experiments/protocol.h"
#include "introspect/models/find_model.h"
#include "introspect/steering/train.h"
#include "introspect/steering/words.h"
#include "io/temporary_folder.h"

using namespace introspect;
using Catch::Contains;

namespace {

/// A variable of the environment, set as long as this lives.
struct Variable {
  Variable(const char* name, const std::string& value) : name(name) { setenv(name, value.c_str(), 1); }
  ~Variable() { unsetenv(name); }
  const char* name;
};

}  // namespace

TEST_CASE("what comes with the library is found by name", "[io]") {
  // the counts that cpp/share/SOURCES.md and the sources named there give
  CHECK(steering::load_suffixes().size() == 582);
  CHECK(steering::load_words("baseline").size() == 100);
  CHECK(steering::load_words("concepts").size() == 50);
  REQUIRE_THROWS_WITH(steering::load_words("nouns"), Contains("baseline") && Contains("nouns"));

  const auto folder = io::share_folder() / "protocols";
  CHECK(experiments::Protocol::load("no_info").to_json() ==
        experiments::Protocol::load(folder / "no_info.json").to_json());
  for (const auto& file : std::filesystem::directory_iterator(folder))
    if (file.path().stem() != "controls")
      CHECK(experiments::Protocol::load(file.path().stem()).name == file.path().stem());
  REQUIRE_THROWS_AS(experiments::Protocol::load("no_inof"), IoError);
}

TEST_CASE("a protocol's name is the shipped one's, and a path a file's", "[io]") {
  const testing::TemporaryFolder folder;
  const auto shipped = experiments::Protocol::load("no_info").to_json();
  const auto other = experiments::Protocol::load("with_info").to_json();
  for (const auto* file : {"no_info", "no_info.json", "mine"}) std::ofstream(folder / file) << other;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder / "");
  CHECK(experiments::Protocol::load("no_info").to_json() == shipped);
  CHECK(experiments::Protocol::load("no_info.json").to_json() == other);
  CHECK(experiments::Protocol::load("./no_info").to_json() == other);
  CHECK(experiments::Protocol::load("mine").to_json() == other);
  std::filesystem::current_path(before);
}

TEST_CASE("INTROSPECT_SHARE must hold the library's data", "[io]") {
  const testing::TemporaryFolder folder;
  const Variable share("INTROSPECT_SHARE", (folder / "").string());
  REQUIRE_THROWS_WITH(steering::load_suffixes(), Contains((folder / "").string()));
}

TEST_CASE("a short name is a model that was fetched", "[io]") {
  const testing::TemporaryFolder folder;
  const Variable models("INTROSPECT_MODELS", (folder / "").string());
  const std::string name = "qwen2.5-coder-0.5b-instruct";
  REQUIRE_THROWS_WITH(models::find_model(name), Contains("introspect pull " + name));
  const auto file = folder / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
  std::ofstream(file) << "weights";
  CHECK(models::find_model(name) == file);
  CHECK(models::find_model(file) == file);
  REQUIRE_THROWS_WITH(models::find_model("qwen2.5-codr"), Contains("no short name") && Contains(name));
}

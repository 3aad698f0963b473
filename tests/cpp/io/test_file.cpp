#include <catch2/catch.hpp>

#include <filesystem>
#include <string>

#include "introspect/core/error.h"
#include "introspect/io/file.h"
#include "temporary_folder.h"

using namespace introspect;
using introspect::testing::TemporaryFolder;

TEST_CASE("write_atomically replaces a file and leaves nothing beside it") {
  const TemporaryFolder folder;
  const auto path = folder / "file";
  for (const std::string text :
       {std::string("first"), std::string("a\0b\n", 4), std::string(300'000, 'x'), std::string()}) {
    io::write_atomically(path, text);
    CHECK(io::read_text(path) == text);
    CHECK(folder.n_files() == 1);
  }
}

TEST_CASE("write_atomically keeps what was there when it cannot write") {
  const TemporaryFolder folder;
  CHECK_THROWS_AS(io::write_atomically(folder / "absent/file", "text"), IoError);
  std::filesystem::create_directories(folder / "taken/inside");
  CHECK_THROWS_AS(io::write_atomically(folder / "taken", "text"),
                  IoError);  // a folder is not replaced by a file
  CHECK(std::filesystem::is_directory(folder / "taken/inside"));
  CHECK(folder.n_files() == 1);
}

TEST_CASE("MappedFile holds the bytes after the name is gone") {
  const TemporaryFolder folder;
  const auto path = folder / "file";
  io::write_atomically(path, "abc");
  const auto file = io::MappedFile::open(path);
  std::filesystem::remove(path);
  REQUIRE(file->bytes().size() == 3);
  CHECK(std::string(reinterpret_cast<const char*>(file->bytes().data()), 3) == "abc");

  io::write_atomically(path, "");
  CHECK(io::MappedFile::open(path)->bytes().empty());
  CHECK_THROWS_AS(io::MappedFile::open(folder / "absent"), IoError);
  CHECK_THROWS_AS(io::MappedFile::open(path.parent_path()), IoError);
  CHECK_THROWS_AS(io::read_text(folder / "absent"), IoError);
}

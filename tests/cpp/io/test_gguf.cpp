#include <torch/types.h>

#include <catch2/catch.hpp>
#include <limits>

#include "introspect/core/error.h"
#include "introspect/io/gguf.h"
#include "introspect/io/gguf_writer.h"
#include "temporary_folder.h"

using namespace introspect;
using introspect::testing::TemporaryFolder;

namespace {

void append(std::string& out, const auto& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

/// A GGUF file of one tensor with one dimension, written by hand.
std::filesystem::path one_tensor(const TemporaryFolder& folder, uint32_t type, uint64_t n,
                                 const std::string& data) {
  std::string file = "GGUF";
  append(file, uint32_t{3});
  append(file, uint64_t{1});
  append(file, uint64_t{0});
  append(file, uint64_t{1});
  file += "w";
  append(file, uint32_t{1});
  append(file, n);
  append(file, type);
  append(file, uint64_t{0});
  file.resize((file.size() + 31) / 32 * 32);
  const auto path = folder / "one.gguf";
  io::write_atomically(path, file + data);
  return path;
}

}  // namespace

TEST_CASE("GgufFile reads back what GgufWriter wrote") {
  const TemporaryFolder folder;
  const auto path = folder / "vector.gguf";
  const auto direction = torch::linspace(-1, 1, 7);
  const auto matrix = torch::arange(6, torch::kFloat64).view({2, 3});
  io::GgufWriter writer("controlvector");
  writer.set("controlvector.model_hint", "qwen2");
  writer.set("controlvector.layer_count", 3);
  writer.set("large", uint64_t{1} << 63);
  writer.set("ratio", 0.5f);
  writer.set("truth", false);
  writer.set("truth", true);  // replaces
  writer.set("words", std::vector<std::string>{"a", ""});
  writer.set("numbers", std::vector<int32_t>{1, -2});
  writer.add("direction.1", direction);
  writer.add("matrix", matrix);
  writer.write(path);

  const auto file = io::GgufFile::open(path);
  CHECK(file->version() == 3);
  CHECK(file->architecture() == "controlvector");
  CHECK(file->get_string("controlvector.model_hint") == "qwen2");
  CHECK(file->get_int("controlvector.layer_count") == 3);
  CHECK(file->get_float("controlvector.layer_count") == 3.0);
  CHECK(std::get<uint64_t>(file->value("large")) == uint64_t{1} << 63);
  CHECK(file->get_float("ratio") == 0.5);
  CHECK(file->get_bool("truth"));
  CHECK(file->get_strings("words") == std::vector<std::string>{"a", ""});
  file->let_go_metadata();
  CHECK(file->get_texts("words") == std::vector<std::string_view>{"a", ""});
  CHECK(file->get_ints("numbers") == std::vector<int64_t>{1, -2});
  CHECK(file->get_floats("numbers") == std::vector<double>{1, -2});
  CHECK(file->get_int_or("absent", 5) == 5);
  CHECK(file->get_string_or("absent", "x") == "x");

  CHECK(file->names() == std::vector<std::string>{"direction.1", "matrix"});
  CHECK(file->shape("matrix") == std::vector<int64_t>{2, 3});
  CHECK(file->dtype("matrix") == "F32");
  CHECK(torch::equal(file->read("direction.1", torch::kFloat32), direction));
  CHECK(torch::equal(file->read("matrix", torch::kFloat64), matrix));
}

TEST_CASE("GgufFile's getters say when a key is absent or of another type") {
  const TemporaryFolder folder;
  const auto path = folder / "a.gguf";
  io::GgufWriter writer("test");
  writer.set("large", std::numeric_limits<uint64_t>::max());
  writer.set("text", "1");
  writer.write(path);
  const auto file = io::GgufFile::open(path);
  CHECK_THROWS_AS(file->get_int("absent"), ConfigError);
  CHECK_THROWS_AS(file->get_int("text"), ConfigError);
  CHECK_THROWS_AS(file->get_int_or("text", 1), ConfigError);
  CHECK_THROWS_AS(file->get_int("large"), ConfigError);
  CHECK_THROWS_AS(file->get_float("text"), ConfigError);
  CHECK_THROWS_AS(file->get_bool("text"), ConfigError);
  CHECK_THROWS_AS(file->get_string("large"), ConfigError);
  CHECK_THROWS_AS(file->get_strings("text"), ConfigError);
  CHECK_THROWS_AS(file->get_texts("text"), ConfigError);
  CHECK_THROWS_AS(file->get_ints("large"), ConfigError);
  CHECK_THROWS_AS(file->read("absent", torch::kFloat32), IoError);
}

TEST_CASE("A Q4_0 block is scale times (nibble - 8), low nibbles first") {
  const TemporaryFolder folder;
  std::string block("\x00\x38", 2);  // 0.5 in float16
  for (int j = 0; j < 16; ++j) block += static_cast<char>(j | (15 - j) << 4);
  const auto values = io::GgufFile::open(one_tensor(folder, 2, 32, block))->read("w", torch::kFloat32);
  for (int j = 0; j < 16; ++j) {
    CHECK(values[j].item<float>() == 0.5f * (j - 8));
    CHECK(values[j + 16].item<float>() == 0.5f * (7 - j));
  }
}

TEST_CASE("A tensor that goes beyond the file is an IoError, an unknown encoding a ConfigError when read") {
  const TemporaryFolder folder;
  CHECK_THROWS_AS(io::GgufFile::open(one_tensor(folder, 2, 64, std::string(18, '\0'))), IoError);
  CHECK_THROWS_AS(io::GgufFile::open(one_tensor(folder, 2, 31, std::string(18, '\0'))), IoError);
  const auto file = io::GgufFile::open(one_tensor(folder, 99, uint64_t{1} << 50, "x"));
  CHECK(file->dtype("w") == "type 99");
  CHECK_THROWS_AS(file->check_readable("w"), ConfigError);
  CHECK_THROWS_AS(file->read("w", torch::kFloat32), ConfigError);
}

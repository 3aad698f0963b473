#include <torch/types.h>

#include <catch2/catch.hpp>
#include <string>

#include "introspect/core/error.h"
#include "introspect/io/hf_folder.h"
#include "introspect/io/safetensors.h"
#include "temporary_folder.h"

using namespace introspect;
using introspect::testing::TemporaryFolder;

TEST_CASE("SafetensorsFile reads back what save_safetensors wrote, aligned") {
  const TemporaryFolder folder;
  const auto path = folder / "a.safetensors";
  const auto halves = torch::linspace(-2, 2, 5).to(torch::kBFloat16);
  const auto doubles = torch::arange(6, torch::kFloat64).view({2, 3}).t();
  io::save_safetensors(path,
                       {{"bytes", torch::ones({3}, torch::kUInt8)}, {"halves", halves}, {"doubles", doubles}},
                       {{"method", "pca_center"}});
  const auto file = io::SafetensorsFile::open(path);
  CHECK(file->names() == std::vector<std::string>{"doubles", "halves", "bytes"});  // the widest first
  CHECK(file->metadata() == std::map<std::string, std::string>{{"method", "pca_center"}});
  CHECK(file->shape("doubles") == std::vector<int64_t>{3, 2});
  CHECK(torch::equal(file->read("doubles", torch::kFloat64), doubles));
  CHECK(torch::equal(file->read("halves", torch::kBFloat16), halves));
  CHECK(torch::equal(file->read("halves", torch::kFloat32), halves.to(torch::kFloat32)));
  CHECK_THROWS_AS(file->read("bytes", torch::kFloat32), ConfigError);
}

TEST_CASE("open_tensors knows a file by its content and an HF folder by its config") {
  const TemporaryFolder folder;
  io::save_safetensors(folder / "model.safetensors", {{"w", torch::ones({2})}});
  CHECK_THROWS_AS(io::open_tensors((folder / "x").parent_path()), IoError);
  io::write_atomically(folder / "config.json", R"({"model_type": "llama"})");
  const auto opened = io::HfFolder::open((folder / "x").parent_path());
  CHECK(opened.config_json == R"({"model_type": "llama"})");
  CHECK_FALSE(opened.generation_config_json.has_value());
  CHECK(opened.weights->fingerprint() == io::open_tensors(folder / "model.safetensors")->fingerprint());
  io::write_atomically(folder / "generation_config.json", "not JSON");
  CHECK_THROWS_AS(io::HfFolder::open((folder / "x").parent_path()), IoError);
}

TEST_CASE("A truncated safetensors file is an IoError at every length") {
  const TemporaryFolder folder;
  const auto path = folder / "a.safetensors";
  io::save_safetensors(path, {{"w", torch::ones({4})}});
  const auto whole = io::read_text(path);
  for (size_t n = 0; n < whole.size(); ++n) {
    io::write_atomically(path, std::string_view(whole).substr(0, n));
    CHECK_THROWS_AS(io::SafetensorsFile::open(path), IoError);
  }
}

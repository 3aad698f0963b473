#include "introspect/io/memory_tensors.h"

#include <torch/types.h>

#include <catch2/catch.hpp>
#include <string>

#include "introspect/core/error.h"
#include "introspect/io/safetensors.h"
#include "temporary_folder.h"

using namespace introspect;
using introspect::testing::TemporaryFolder;

TEST_CASE("MemoryTensors are what a safetensors file of the same tensors is") {
  const TemporaryFolder folder;
  const std::map<std::string, torch::Tensor> tensors = {
      {"large", torch::arange(3000, torch::kFloat64).view({3, 1000})},  // more than is sampled at either end
      {"transposed", torch::arange(6, torch::kFloat32).view({2, 3}).t()},
      {"halves", torch::linspace(-2, 2, 5).to(torch::kBFloat16)},
      {"scalar", torch::ones({}, torch::kFloat16)},
      {"nothing", torch::empty({0, 4})},
      {"bytes", torch::ones({3}, torch::kUInt8)}};
  io::save_safetensors(folder / "a.safetensors", {tensors.begin(), tensors.end()});
  const auto file = io::SafetensorsFile::open(folder / "a.safetensors");
  const io::MemoryTensors memory(tensors);
  CHECK(memory.fingerprint() == file->fingerprint());
  CHECK(memory.names().size() == tensors.size());
  for (const auto& name : memory.names()) {
    CHECK(memory.shape(name) == file->shape(name));
    CHECK(memory.dtype(name) == file->dtype(name));
    if (name != "bytes")
      CHECK(torch::equal(memory.read(name, torch::kFloat32), file->read(name, torch::kFloat32)));
  }
  CHECK_FALSE(memory.has("large "));

  auto changed = tensors;
  changed["large"] = tensors.at("large").clone();
  changed["large"][2][999] += 1;
  CHECK(io::MemoryTensors(changed).fingerprint() != file->fingerprint());
}

TEST_CASE("what MemoryTensors cannot give is a typed error") {
  const io::MemoryTensors memory({{"ints", torch::ones({2}, torch::kLong)}, {"w", torch::ones({2, 3})}});
  CHECK_THROWS_AS(memory.shape("absent"), IoError);
  CHECK_THROWS_AS(memory.read("ints", torch::kFloat32), ConfigError);
  auto other = torch::empty({3, 2});
  CHECK_THROWS_AS(memory.read_into("w", other), ShapeError);
  CHECK_THROWS_AS(io::MemoryTensors({{"undefined", torch::Tensor{}}}), ShapeError);
}

TEST_CASE("reading from MemoryTensors leaves them alone") {
  const auto w = torch::ones({2, 3});
  const io::MemoryTensors memory({{"w", w}});
  memory.read("w", torch::kFloat32).zero_();
  CHECK(torch::equal(w, torch::ones({2, 3})));
}

#include <cmath>
#include <filesystem>
#include <limits>
#include <stdexcept>

#include <unistd.h>

#include <torch/types.h>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/io/file.h"
#include "introspect/steering/control_vector.h"

using namespace introspect;
using steering::ControlVector;
namespace fs = std::filesystem;

namespace {

ControlVector sample(std::vector<int64_t> layers, int64_t width, uint64_t seed) {
  at::manual_seed(seed);
  ControlVector::Directions directions;
  for (const auto layer : layers) directions.emplace(layer, torch::randn({width}));
  steering::VectorOrigin origin{"model", "abc", "pca_center", 3, {{layers[0], {0.5, 0.25}}}, 2, {}};
  origin.diagnostics[layers[0]] = {0.5, 0.75, 0.875, std::nullopt};
  return ControlVector("qwen2", directions, origin);
}

struct TemporaryFile {
  fs::path path;
  explicit TemporaryFile(const std::string& ending)
      : path(fs::temp_directory_path() / ("introspect-vector-" + std::to_string(getpid()) + ending)) {}
  ~TemporaryFile() { fs::remove(path); }
};

/// Dot products of all pairs of directions: norms on the diagonal, and with them the cosines.
torch::Tensor dot_products(const ControlVector& vector) {
  std::vector<torch::Tensor> rows;
  for (const auto& [layer, direction] : vector.directions()) rows.push_back(direction.to(torch::kFloat64));
  const auto matrix = torch::stack(rows);
  return matrix.mm(matrix.t());
}

}  // namespace

TEST_CASE("vector arithmetic is the arithmetic of the directions", "[steering][vector]") {
  const auto a = sample({1, 2}, 4, 1), b = sample({2, 3}, 4, 2);
  const auto sum = a + 2.0 * b;
  CHECK(sum.layers() == std::vector<int64_t>{1, 2, 3});
  CHECK(sum.directions().at(1).equal(a.directions().at(1)));
  CHECK(sum.directions().at(2).equal(a.directions().at(2) + 2 * b.directions().at(2)));
  CHECK(sum.directions().at(3).equal(2 * b.directions().at(3)));
  CHECK(a * 20 == -(a * -20));
  CHECK(a - a == a * 0);
  CHECK(a / 2 == 0.5 * a);
  CHECK_FALSE(a == 2 * a);
  CHECK_FALSE(a == sample({1, 3}, 4, 1));
}

TEST_CASE("vectors that do not fit together are refused", "[steering][vector]") {
  const auto a = sample({1, 2}, 4, 1);
  CHECK_THROWS_AS(a + sample({1, 2}, 5, 1), ShapeError);
  CHECK_THROWS_AS(a + ControlVector("llama", a.directions()), ConfigError);
  CHECK_THROWS_AS(a * std::nan(""), std::invalid_argument);
  CHECK_THROWS_AS(a / 0, std::invalid_argument);
  CHECK_THROWS_AS(ControlVector("m", {}), ConfigError);
  CHECK_THROWS_AS(ControlVector("m", {{-1, torch::ones({3})}}), std::out_of_range);
  CHECK_THROWS_AS(ControlVector("m", {{1, torch::ones({3, 3})}}), ShapeError);
  CHECK_THROWS_AS(ControlVector("m", {{1, torch::ones({3})}, {2, torch::ones({4})}}), ShapeError);
  CHECK_THROWS_AS(ControlVector("m", {{1, torch::full({3}, std::numeric_limits<double>::infinity())}}),
                  std::invalid_argument);
}

TEST_CASE("a vector's files give it back bit for bit, with its origin", "[steering][vector]") {
  const auto ending = GENERATE(std::string(".gguf"), std::string(".safetensors"));
  const TemporaryFile file(ending);
  const auto vector = sample({1, 5, 23}, 8, 3);
  vector.save(file.path);
  const auto back = ControlVector::load(file.path);
  CHECK(back == vector);
  CHECK(back.origin().model_hash == "abc");
  CHECK(back.origin().method == "pca_center");
  CHECK(back.origin().n_pairs == 3);
  CHECK(back.origin().spectrum == vector.origin().spectrum);
  CHECK(back.origin().folds == 2);
  const auto& judged = back.origin().diagnostics.at(vector.layers().front());
  CHECK(judged.explained_variance == 0.5);
  CHECK(judged.sign_agreement == 0.75);
  CHECK(judged.accuracy == 0.875);
  CHECK_FALSE(judged.auc);
}

TEST_CASE("layer 0 goes to safetensors, and to GGUF not at all", "[steering][vector]") {
  const TemporaryFile gguf(".gguf"), safetensors(".safetensors");
  const auto vector = sample({0, 1}, 4, 4);
  CHECK_THROWS_AS(vector.save(gguf.path), ConfigError);
  CHECK_FALSE(fs::exists(gguf.path));
  vector.save(safetensors.path);
  CHECK(ControlVector::load(safetensors.path) == vector);
}

TEST_CASE("files that are no control vectors are refused", "[steering][vector]") {
  const TemporaryFile gguf(".gguf"), safetensors(".safetensors"), other(".bin");
  CHECK_THROWS_AS(ControlVector::load(gguf.path), IoError);
  io::write_atomically(gguf.path, "not a GGUF file");
  CHECK_THROWS_AS(ControlVector::load(gguf.path), IoError);
  io::write_atomically(safetensors.path, "");
  CHECK_THROWS_AS(ControlVector::load(safetensors.path), IoError);
  CHECK_THROWS_AS(ControlVector::load(other.path), std::invalid_argument);
  CHECK_THROWS_AS(sample({1}, 2, 1).save(other.path), std::invalid_argument);
}

TEST_CASE("a random rotation keeps norms and cosines and forgets the direction", "[steering][vector]") {
  const auto [layers, width] = GENERATE(std::pair{5, 256}, std::pair{5, 4});
  std::vector<int64_t> numbers;
  for (int64_t layer = 1; layer <= layers; ++layer) numbers.push_back(layer);
  const auto vector = sample(numbers, width, 5);
  const auto rotated = random_rotation(vector, 1);
  CHECK(torch::allclose(dot_products(vector), dot_products(rotated), 1e-5, 1e-4));
  CHECK(rotated == random_rotation(vector, 1));
  CHECK_FALSE(rotated == random_rotation(vector, 2));
  if (width == 256) {  // cosines of random directions have a standard deviation of 1/16
    const auto& direction = vector.directions().at(1);
    CHECK(std::abs(at::cosine_similarity(direction, rotated.directions().at(1), 0).item<double>()) < 0.4);
  }
}

TEST_CASE("rotations of one direction spread evenly over the sphere", "[steering][vector]") {
  const ControlVector vector("m", {{1, torch::tensor({3.0F, 4.0F, 0.0F})}});
  constexpr int n = 600;
  auto mean = torch::zeros({3}), second = torch::zeros({3, 3});
  for (int seed = 0; seed < n; ++seed) {
    const auto x = random_rotation(vector, static_cast<uint64_t>(seed)).directions().at(1) / 5;
    mean += x / n;
    second += x.outer(x) / n;
  }
  // Each coordinate has variance 1/3: the mean's standard error is 0.024, the second moments' below 0.013.
  CHECK(mean.abs().max().item<double>() < 0.1);
  CHECK((second - torch::eye(3) / 3).abs().max().item<double>() < 0.06);
}

TEST_CASE("steering takes the directions inside a range", "[steering][vector]") {
  const auto vector = sample({2, 3, 7}, 4, 6);
  const auto added = as_intervention(vector, 8, 3, 7);
  REQUIRE(added.values.size() == 2);
  CHECK(added.values.at(7).v().equal(vector.directions().at(7)));
  CHECK_THROWS_AS(as_intervention(vector, 8, 4, 6), ConfigError);
  CHECK_THROWS_AS(as_intervention(vector, 7, 3, 7), std::out_of_range);
  CHECK_THROWS_AS(as_intervention(vector, 8, 3, 2), std::out_of_range);
}

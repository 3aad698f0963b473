#include "introspect/ops/norm.h"

#include <catch2/catch.hpp>

#include "introspect/core/error.h"

using namespace introspect;

namespace {

const double kEps = 1e-6;

torch::Tensor wide(const torch::Tensor& x) {
  return x.to(torch::kFloat64);
}

/// Zhang & Sennrich 2019 in double precision.
torch::Tensor exact_scale(const torch::Tensor& x) {
  return wide(x).pow(2).mean({-1}, /*keepdim=*/true).add(kEps).sqrt();
}

/// Whether `got` is `exact` but for so many roundings of its dtype.
bool is_near(const torch::Tensor& got, const torch::Tensor& exact, double roundings) {
  const double ulp = got.scalar_type() == torch::kBFloat16 ? 1.0 / 256 : 6e-8;
  return ((wide(got) - exact).abs() <= exact.abs() * ulp * roundings + 1e-12).all().item<bool>();
}

}  // namespace

// Odd widths exercise the parts of a row that fill no vector.
TEST_CASE("RMS norms equal their formula in double precision", "[ops]") {
  const auto width = GENERATE(1, 5, 8, 17, 31, 64, 100, 576);
  const auto dtype = GENERATE(torch::kFloat32, torch::kBFloat16);
  at::manual_seed(0);
  const auto x = (at::randn({2, 3, width}) * 5).to(dtype), weight = (at::randn({width}) + 1).to(dtype);
  const auto exact = wide(x) / exact_scale(x);
  // The scale is a float32 sum of `width` squares: as many roundings, at most.
  const double roundings = dtype == torch::kFloat32 ? 8 + width / 8.0 : 1.1;
  CHECK(is_near(ops::rms_normalize(x, kEps), exact, roundings));
  CHECK(is_near(ops::rms_norm(x, weight, kEps), exact * wide(weight), 2 * roundings));
  CHECK(is_near(ops::gemma_rms_norm(x, weight.to(torch::kFloat32), kEps), exact * wide(weight), roundings));
  CHECK(is_near(ops::rms_scale(x, kEps), exact_scale(x), 8 + width / 8.0));
  CHECK_THROWS_AS(ops::rms_norm(x, at::ones({width + 1}, x.options()), kEps), ShapeError);
}

TEST_CASE("layer norm equals its formula in double precision", "[ops]") {
  at::manual_seed(0);
  const auto x = at::randn({2, 3, 100}) * 5 + 2, weight = at::randn({100}), bias = at::randn({100});
  const auto centred = wide(x) - wide(x).mean({-1}, true);
  const auto scale = centred.pow(2).mean({-1}, true).add(kEps).sqrt();
  // float32 sums of 100 numbers of order ten
  const auto near = [](const torch::Tensor& got, const torch::Tensor& exact) {
    return at::allclose(wide(got), exact, 1e-5, 1e-5);
  };
  CHECK(near(ops::layer_norm(x, weight, bias, kEps), centred / scale * wide(weight) + wide(bias)));
  CHECK(near(ops::layer_normalize(x, kEps), centred / scale));
  CHECK(near(ops::layer_scale(x, kEps), scale));
}

#include "introspect/ops/quantised_rows.h"

#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

using namespace introspect;

namespace {

struct Encoding {
  std::string name;
  int64_t elements, bytes;  // of a block
  int64_t scale_at;         // its float16 scale
  int64_t offset_at;        // that of the offset, or -1
  double scale, offset;     // their sizes, for values of order one
};

const std::vector<Encoding> kEncodings = {{"Q4_0", 32, 18, 0, -1, 0.1, 0},
                                          {"Q4_1", 32, 20, 0, 2, 0.1, -0.75},
                                          {"Q5_0", 32, 22, 0, -1, 0.05, 0},
                                          {"Q5_1", 32, 24, 0, 2, 0.05, -0.8},
                                          {"Q8_0", 32, 34, 0, -1, 0.01, 0},
                                          {"Q4_K", 256, 144, 0, 2, 0.003, 0.02},
                                          {"Q5_K", 256, 176, 0, 2, 0.002, 0.03},
                                          {"Q6_K", 256, 210, 208, -1, 0.001, 0},
                                          // without kernels of their own: unpacked a part of a row at a time
                                          {"Q2_K", 256, 84, 80, 82, 0.1, 0.1},
                                          {"Q3_K", 256, 110, 108, -1, 0.02, 0},
                                          {"F16", 1, 2, 0, -1, 1, 0}};

/// Rows of random codes.
ops::QuantisedRows random_rows(const Encoding& encoding, int64_t n, int64_t K) {
  const int64_t blocks = n * K / encoding.elements;
  auto bytes = at::randint(256, {blocks, encoding.bytes}, torch::kByte);
  const auto put = [&](int64_t at, double size) {
    const auto halves = (size * (0.5 + at::rand({blocks, 1}))).to(torch::kHalf).view(torch::kByte);
    bytes.narrow(1, at, 2).copy_(halves);
  };
  put(encoding.scale_at, encoding.scale);
  if (encoding.offset_at >= 0) put(encoding.offset_at, encoding.offset);
  return {encoding.name, bytes.view({n, K / encoding.elements * encoding.bytes}), torch::kFloat32};
}

/// What float32 sums, in any order, may do to products of x [N, K] and the values, themselves a few roundings off:
/// [N, rows].
torch::Tensor bound(const torch::Tensor& x, const torch::Tensor& values) {
  const double K = static_cast<double>(x.size(1));
  return (K + 8) * std::ldexp(1.0, -24) * at::mm(x.to(torch::kFloat64).abs(), values.abs().t()) + 1e-30;
}

}  // namespace

// Rows of one block, of odd numbers of them, and of more than are unpacked at a time; more products than a task sums at
// once (256).
TEST_CASE("few rows times quantised blocks are the products in double precision", "[ops]") {
  const auto encoding = GENERATE(from_range(kEncodings));
  const int64_t K = encoding.elements * GENERATE(1, 2, 3, 17, 18, 28);
  const int64_t V = K < 1000 ? 300 : 37;
  at::manual_seed(0);
  const auto rows = random_rows(encoding, V, K);
  const auto values = rows.dense(torch::kFloat64), bias = at::randn({V});
  auto x = at::randn({4, K});
  x[1] *= 1e-20;
  x[2] *= 1e20;
  x[3].zero_();
  const auto all = rows.product(x);
  const auto exact = at::mm(x.to(torch::kFloat64), values.t());
  REQUIRE(((all.to(torch::kFloat64) - exact).abs() <= bound(x, values)).all().item<bool>());
  REQUIRE(at::equal(all[3], at::zeros({V})));
  REQUIRE(at::equal(rows.product(x, bias), all + bias));
  for (int64_t n = 1; n < 4; ++n)
    REQUIRE(at::equal(rows.product(x.narrow(0, 4 - n, n)), all.narrow(0, 4 - n, n)));

  const auto half = x.to(torch::kBFloat16), half_bias = bias.to(torch::kBFloat16);
  const auto sums = rows.product(half.to(torch::kFloat32));
  REQUIRE(at::equal(rows.product(half), sums.to(torch::kBFloat16)));
  REQUIRE(at::equal(rows.product(half, half_bias), (sums + half_bias).to(torch::kBFloat16)));
}

TEST_CASE("what is not finite in a row reaches its products with quantised blocks, and no other's", "[ops]") {
  const auto encoding = GENERATE(from_range(kEncodings));
  at::manual_seed(1);
  const auto rows = random_rows(encoding, 9, 512);
  auto x = at::randn({4, 512});
  const auto before = rows.product(x);
  x[1][500] = std::numeric_limits<float>::quiet_NaN();
  x[2][3] = -std::numeric_limits<float>::infinity();
  const auto after = rows.product(x);
  REQUIRE(after[1].isnan().all().item<bool>());
  REQUIRE_FALSE(after[2].isfinite().any().item<bool>());
  REQUIRE(at::equal(after[0], before[0]));
  REQUIRE(at::equal(after[3], before[3]));
}

#include "introspect/ops/attention.h"

#include <limits>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/ops/bfloat16_products.h"
#include "introspect/ops/rotary.h"
#include "ops/bfloat16_way.h"

using namespace introspect;

namespace {

const double kScale = 0.3;

/// Attention as the formula has it, in double precision: softmax over the keys that `sees_TS` allows.
torch::Tensor exact_attention(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                              const torch::Tensor& v_BGSK, const torch::Tensor& sees_TS, double soft_cap) {
  const int64_t R = q_BTHK.size(2) / k_BGSK.size(1);
  const auto q = q_BTHK.to(torch::kFloat64).transpose(1, 2);  // [B, H, T, K]
  const auto k = k_BGSK.to(torch::kFloat64).repeat_interleave(R, 1),
             v = v_BGSK.to(torch::kFloat64).repeat_interleave(R, 1);
  auto scores = at::matmul(q, k.transpose(2, 3)) * kScale;
  if (soft_cap > 0) scores = (scores / soft_cap).tanh() * soft_cap;
  scores = scores.masked_fill(sees_TS.logical_not(), -std::numeric_limits<double>::infinity());
  return at::matmul(at::softmax(scores, -1), v).transpose(1, 2);
}

/// Which keys of a tree each of the last `n_queries` sees: itself and its ancestors, at most `window` of them.
torch::Tensor sees_of_tree(const std::vector<int32_t>& parents, int64_t n_queries, int64_t window) {
  const auto S = static_cast<int64_t>(parents.size());
  auto sees = at::zeros({n_queries, S}, torch::kBool);
  for (int64_t t = 0; t < n_queries; ++t) {
    int64_t seen = 0;
    for (auto s = static_cast<int32_t>(S - n_queries + t); s >= 0 && (window == 0 || seen < window); ++seen) {
      sees[t][s] = true;
      s = parents[static_cast<size_t>(s)];
    }
  }
  return sees;
}

double bound(torch::ScalarType dtype) {
  // means of values of order one: float32 sums of tens of products, or one rounding to 8 bits of each of a few steps
  return dtype == torch::kFloat64 ? 1e-12 : dtype == torch::kFloat32 ? 5e-6 : 0.04;
}

}  // namespace

// Head widths of 20 and 7 exercise the parts that fill no vector.
TEST_CASE("attention equals its formula, causal and in token trees", "[ops]") {
  const auto dtype = GENERATE(torch::kFloat64, torch::kFloat32, torch::kBFloat16);
  const auto d_head = GENERATE(7, 20, 64);
  const auto soft_cap = GENERATE(0.0, 2.0);
  const int64_t T = 5, S = 9, H = 6, G = 2;
  at::manual_seed(0);
  const auto q = at::randn({1, T, H, d_head}).to(dtype), k = at::randn({1, G, S, d_head}).to(dtype),
             v = at::randn({1, G, S, d_head}).to(dtype);
  const auto near = [&](const torch::Tensor& got, const torch::Tensor& sees_TS) {
    return at::allclose(got.to(torch::kFloat64), exact_attention(q, k, v, sees_TS, soft_cap), 0,
                        bound(dtype));
  };

  const auto causal = at::ones({T, S}, torch::kBool).tril(S - T);
  CHECK(near(ops::attention(q, k, v, kScale, {}, soft_cap), causal));
  const auto pattern = ops::attention_pattern(ops::attention_scores(q, k, kScale, {}, soft_cap));
  CHECK(near(ops::attend(pattern, v), causal));

  // two branches after a trunk of three, one of which branches again
  const std::vector<int32_t> parents = {-1, 0, 1, 2, 2, 3, 4, 6, 6};
  for (const int64_t window : {0, 2}) {
    ops::AttentionMask mask;
    mask.parents = torch::tensor(parents, torch::kInt32);
    mask.window = window;
    CHECK(near(ops::attention(q, k, v, kScale, mask, soft_cap), sees_of_tree(parents, T, window)));
  }
  CHECK_THROWS_AS(ops::attention(q, k.narrow(3, 0, d_head - 1), v, kScale, {}, soft_cap), ShapeError);
}

// Heads of 64 and 128 numbers have a kernel of bfloat16 of their own, for three, two and one heads at a time.
TEST_CASE("attention in token trees equals its formula for the usual heads of bfloat16", "[ops]") {
  const auto d_head = GENERATE(64, 128);
  const auto shared = GENERATE(1, 2, 3, 4, 6);
  const int64_t T = 12, G = 2, H = G * shared;
  std::vector<int32_t> parents;
  for (int32_t s = 0; s < 50; ++s) parents.push_back(s - 1);
  for (int32_t s = 50; s < 62; ++s)
    parents.push_back(s % 2 ? s - 1 : s - 15);  // branches of two that leave the trunk
  const auto S = static_cast<int64_t>(parents.size());
  at::manual_seed(0);
  const auto q = at::randn({1, T, H, d_head}).to(torch::kBFloat16) / 2,
             k = at::randn({1, G, S, d_head}).to(torch::kBFloat16) / 2,
             v = at::randn({1, G, S, d_head}).to(torch::kBFloat16);
  for (const int64_t window : {0, 20}) {
    ops::AttentionMask mask;
    mask.parents = torch::tensor(parents, torch::kInt32);
    mask.window = window;
    const auto exact = exact_attention(q, k, v, sees_of_tree(parents, T, window), 0);
    const auto z = ops::attention(q, k, v, kScale, mask).to(torch::kFloat64);
    // summed in float32 and rounded once
    CHECK(((z - exact).abs() <= exact.abs() / 256 + 1e-5).all().item<bool>());
  }
}

// 600 keys are more than the 512 whose scores stand at once; 5 heads of a group and 40 positions fill no whole panels.
TEST_CASE("attention of bfloat16 equals its formula under every mask", "[ops]") {
  const Way way(GENERATE(from_range(ops::bfloat16_products_here())));
  const auto [T, S] = GENERATE(table<int64_t, int64_t>({{1, 1}, {1, 65}, {40, 40}, {7, 600}}));
  const auto d_head = GENERATE(32, 64, 256);
  const int64_t B = 2, G = 2, H = 10;
  at::manual_seed(0);
  const auto q = at::randn({B, T, H, d_head}).to(torch::kBFloat16) / 2,
             k = at::randn({B, G, S, d_head}).to(torch::kBFloat16) / 2,
             v = at::randn({B, S, G, d_head}).to(torch::kBFloat16).transpose(1, 2);
  const auto check = [&](const ops::AttentionMask& mask, const torch::Tensor& sees) {
    const auto z = ops::attention(q, k, v, kScale, mask).to(torch::kFloat64);
    const auto exact = exact_attention(q, k, v, sees, 0), sizes = exact_attention(q, k, v.abs(), sees, 0);
    // the pattern is rounded to 8 bits, and so is the result; the rest are float32 sums
    CHECK(((z - exact).abs() <= sizes / 256 + exact.abs() / 256 + 1e-5).all().item<bool>());
  };
  const auto causal = at::ones({T, S}, torch::kBool).tril(S - T);
  check({}, causal);
  ops::AttentionMask whole;
  whole.causal = false;
  check(whole, at::ones({T, S}, torch::kBool));
  // one row padded to the left, windows of 5 keys
  auto real = at::ones({B, S}, torch::kBool);
  real[1].slice(0, 0, S / 2).fill_(false);
  for (const int64_t window : {0, 5}) {
    ops::AttentionMask mask;
    mask.additive = ops::additive_mask(real, T, torch::kBFloat16, window);
    check(mask, mask.additive == 0);
  }
  if (S == 1) return;
  ops::AttentionMask weighed;  // other numbers than 0 and -inf are added to the scores
  weighed.additive = at::randn({1, 1, T, S}).to(torch::kBFloat16);
  CHECK_FALSE(at::equal(ops::attention(q, k, v, kScale, weighed), ops::attention(q, k, v, kScale, whole)));
}

TEST_CASE("a query of bfloat16 has the same attention alone as among others", "[ops]") {
  auto ways = ops::bfloat16_products_here();
  ways.pop_back();           // "widened": ATen's attention, whose sums depend on how many queries there are
  if (ways.empty()) return;  // this processor has no product of bfloat16
  const Way way(GENERATE_COPY(from_range(ways)));
  const int64_t B = 3, T = 70, H = 6, G = 2, d_head = 64;
  at::manual_seed(0);
  const auto q = at::randn({B, T, H, d_head}).to(torch::kBFloat16),
             k = at::randn({B, G, T, d_head}).to(torch::kBFloat16),
             v = at::randn({B, G, T, d_head}).to(torch::kBFloat16);
  const auto all = ops::attention(q, k, v, kScale, {});
  for (int64_t b = 0; b < B; ++b) {
    const auto row = [&](const torch::Tensor& t) { return t.narrow(0, b, 1); };
    CHECK(at::equal(ops::attention(row(q), row(k), row(v), kScale, {}), row(all)));
    for (const int64_t t : {0, 31, 32, 69})  // after a prefix, as in a cache
      CHECK(at::equal(ops::attention(row(q).narrow(1, t, 1), row(k).narrow(2, 0, t + 1),
                                     row(v).narrow(2, 0, t + 1), kScale, {}),
                      row(all).narrow(1, t, 1)));
  }
}

TEST_CASE("rotary embedding turns each pair by its angle", "[ops]") {
  const auto dtype = GENERATE(torch::kFloat32, torch::kBFloat16);
  const auto d_head = GENERATE(8, 22, 64);
  const auto half = d_head / 2 - GENERATE(0, 1);  // of all pairs, or but for the last two elements
  at::manual_seed(0);
  const auto x = at::randn({2, 5, 3, d_head}).to(dtype);
  const auto angles =
      at::arange(10, torch::kFloat64).view({2, 5, 1}) * at::arange(1, half + 1).view({1, 1, half}) * 0.1;
  const auto c = angles.cos().to(dtype), s = angles.sin().to(dtype);
  const auto cos = c.to(torch::kFloat64).unsqueeze(2), sin = s.to(torch::kFloat64).unsqueeze(2);
  const auto wide = x.to(torch::kFloat64);
  const auto u = wide.narrow(3, 0, half), v = wide.narrow(3, half, half);
  const auto exact =
      at::cat({u * cos - v * sin, v * cos + u * sin, wide.narrow(3, 2 * half, d_head - 2 * half)}, 3);
  // three roundings of numbers up to four
  const double bound = dtype == torch::kFloat32 ? 1e-6 : 0.05;
  CHECK(at::allclose(ops::apply_rotary(x, c, s).to(torch::kFloat64), exact, 0, bound));
}

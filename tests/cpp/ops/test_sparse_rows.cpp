#include <stdexcept>

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/ops/sparse_rows.h"

using namespace introspect;
using ops::SparseRows;

namespace {

torch::Tensor whole(std::vector<int64_t> sizes, uint64_t seed, torch::ScalarType dtype) {
  at::manual_seed(seed);
  return torch::randint(-3, 4, sizes).to(dtype);
}

/// f [N, F], whose sums are whole numbers and exact.
torch::Tensor dense(const SparseRows& f, int64_t F) {
  auto out = torch::zeros({f.rows(), F}, f.values.options());
  for (int64_t n = 0; n < f.rows(); ++n)
    for (int64_t e = f.offsets[n].item<int64_t>(); e < f.offsets[n + 1].item<int64_t>(); ++e)
      out[n][f.indices[e].item<int64_t>()] = f.values[e];
  return out;
}

}  // namespace

TEST_CASE("Gradients of f W go through the entries alone", "[ops][sparse]") {
  const auto dtype = GENERATE(torch::kFloat32, torch::kFloat64);
  const int64_t N = 50, F = 37, D = GENERATE(1, 19, 64);
  const auto x_ND = whole({N, D}, 1, dtype), W_FD = whole({F, D}, 2, dtype), g_ND = whole({N, D}, 3, dtype);
  const auto f = ops::topk_rows(x_ND, {W_FD}, 5);
  const auto f_NF = dense(f, F);

  CHECK(torch::equal(ops::gather_decode(f, W_FD), f_NF.matmul(W_FD)));

  const SparseRows df{f.offsets, f.indices, ops::dot_rows(g_ND, W_FD, f)};
  CHECK(torch::equal(dense(df, F), g_ND.matmul(W_FD.t()) * (f_NF != 0)));

  const auto columns = ops::by_column(f, F);
  auto dW_FD = torch::ones({F, D}, dtype);
  ops::add_rows(columns, f.values, g_ND, dW_FD);
  CHECK(torch::equal(dW_FD, 1 + f_NF.t().matmul(g_ND)));
}

TEST_CASE("Narrow weights are widened row by row", "[ops][sparse]") {
  const auto dtype = GENERATE(torch::kBFloat16, torch::kFloat16);
  const auto x_ND = whole({9, 20}, 1, torch::kFloat32), W_FD = whole({30, 20}, 2, torch::kFloat32);
  const auto f = ops::topk_rows(x_ND, {W_FD.to(dtype)}, 4);
  CHECK(f.values.scalar_type() == torch::kFloat32);
  CHECK(torch::equal(dense(f, 30), dense(ops::topk_rows(x_ND, {W_FD}, 4), 30)));
  CHECK(torch::equal(ops::gather_decode(f, W_FD.to(dtype)), ops::gather_decode(f, W_FD)));
  CHECK(torch::equal(ops::dot_rows(x_ND, W_FD.to(dtype), f), ops::dot_rows(x_ND, W_FD, f)));
}

TEST_CASE("Columns with many entries and with none are shared out alike", "[ops][sparse]") {
  const int64_t N = 3000, F = 4, D = 64;
  const auto offsets = torch::arange(0, 2 * N + 1, 2), indices = torch::tensor({1, 3}).repeat({N});
  const auto c = whole({2 * N}, 1, torch::kFloat32), rows = whole({N, D}, 2, torch::kFloat32);
  const SparseRows f{offsets, indices, c};
  auto out = torch::zeros({F, D});
  at::set_num_threads(3);
  ops::add_rows(ops::by_column(f, F), c, rows, out);
  at::set_num_threads(1);
  CHECK(torch::equal(out, dense(f, F).t().matmul(rows)));
  CHECK_FALSE(out[0].any().item<bool>());
}

TEST_CASE("Entries that name no row are refused", "[ops][sparse]") {
  const auto W_FD = torch::ones({3, 2}), g_ND = torch::ones({1, 2});
  const auto offsets = torch::tensor({0, 1}), value = torch::ones({1});
  for (const int64_t index : {-1, 3}) {
    const SparseRows f{offsets, torch::tensor({index}), value};
    CHECK_THROWS_AS(ops::gather_decode(f, W_FD), std::out_of_range);
    CHECK_THROWS_AS(ops::dot_rows(g_ND, W_FD, f), std::out_of_range);
    CHECK_THROWS_AS(ops::by_column(f, 3), std::out_of_range);
  }
  const SparseRows f{torch::tensor({0, 2}), torch::tensor({0}), value};
  CHECK_THROWS_AS(ops::gather_decode(f, W_FD), ShapeError);
  auto narrow = torch::zeros({3, 3});
  const auto columns = ops::by_column({offsets, torch::tensor({0}), value}, 3);
  CHECK_THROWS_AS(ops::add_rows(columns, value, g_ND, narrow), ShapeError);
  CHECK_THROWS_AS(ops::topk_rows(g_ND, {W_FD}, 4), std::invalid_argument);
  CHECK_THROWS_AS(ops::topk_rows(torch::ones({1, 5}), {W_FD}, 1), ShapeError);
}

#include "ops/quantised_product.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/reused_memory.h"
#include "ops/equal_rows.h"
#include "ops/gemm.h"
#include "ops/gemm_bfloat16.h"
#include "ops/quantised_dot.h"

namespace introspect::ops {

namespace {

constexpr int64_t kBytesPerTask = 1 << 16;

int64_t row_bytes(const BlockRows& part, int64_t K) {
  return K / part.quantisation->layout.block_elements * part.quantisation->layout.block_bytes;
}

/// Calls f(first row, part of a part) for the rows [first, last) of all parts.
template <typename F>
void for_parts(const std::vector<BlockRows>& parts, int64_t K, int64_t first, int64_t last, const F& f) {
  int64_t at = 0;
  for (const auto& part : parts) {
    const int64_t begin = std::max(first, at), end = std::min(last, at + part.n);
    if (begin < end)
      f(begin, BlockRows{part.quantisation, part.bytes + (begin - at) * row_bytes(part, K), end - begin});
    at += part.n;
  }
}

void write(const float* sums, int64_t n, float* out) {
  std::copy_n(sums, n, out);
}

void write(const float* sums, int64_t n, c10::BFloat16* out) {
  round_to_bfloat16(sums, n, reinterpret_cast<uint16_t*>(out));
}

/// x [N, K], N <= kFewRows, times the rows of `parts`, plus bias or null -> out [N, V].
template <typename T>
void few_rows(const float* x, const std::vector<BlockRows>& parts, const float* bias, T* out, int64_t N,
              int64_t V, int64_t K) {
  constexpr int64_t kRows = 256;  // whose sums are there before they are written
  int64_t bytes = 0;
  for (const auto& part : parts) bytes += part.n * row_bytes(part, K);
  const int64_t grain = std::max<int64_t>(1, V * kBytesPerTask / std::max<int64_t>(bytes, 1));
  parallel_for(0, V, grain, [&](int64_t begin, int64_t end) {
    float sums[kFewRows * kRows];
    for (int64_t first = begin; first < end; first += kRows) {
      const int64_t n_rows = std::min(kRows, end - first);
      for_parts(parts, K, first, first + n_rows, [&](int64_t v, const BlockRows& rows) {
        dot_rows(*rows.quantisation, x, N, rows.bytes, rows.n, K, sums + (v - first), kRows);
      });
      for (int64_t n = 0; n < N; ++n) {
        float* row = sums + n * kRows;
        for (int64_t v = 0; bias && v < n_rows; ++v) row[v] += bias[first + v];
        write(row, n_rows, out + n * V + first);
      }
    }
  });
}

}  // namespace

torch::Tensor quantised_product(const torch::Tensor& x_NK, const std::vector<BlockRows>& parts,
                                const torch::Tensor& bias) {
  const int64_t N = x_NK.size(0), K = x_NK.size(1);
  int64_t V = 0;
  for (const auto& part : parts) V += part.n;
  auto out_NV = reused_empty({N, V}, x_NK.options());
  const auto wide_bias = bias.defined() ? bias.to(torch::kFloat32).contiguous() : bias;
  const float* b = bias.defined() ? wide_bias.const_data_ptr<float>() : nullptr;
  const bool is_float = x_NK.scalar_type() == torch::kFloat32;
  const bool has_kernel = is_float ? has_gemm_rows() : has_gemm_bfloat16();
  const bool few = N <= kFewRows && !(has_kernel && EqualRows::are_wanted());
  if (few && is_float) {
    few_rows(x_NK.const_data_ptr<float>(), parts, b, out_NV.mutable_data_ptr<float>(), N, V, K);
    return out_NV;
  }
  if (few) {
    const auto* narrow = x_NK.const_data_ptr<c10::BFloat16>();
    const std::vector<float> wide(narrow, narrow + N * K);
    few_rows(wide.data(), parts, b, out_NV.mutable_data_ptr<c10::BFloat16>(), N, V, K);
    return out_NV;
  }
  const UnpackRows unpack = [&](int64_t first, int64_t n, float* to) {
    for_parts(parts, K, first, first + n, [&](int64_t row, const BlockRows& rows) {
      rows.quantisation->dequantise(rows.bytes, rows.n * (K / rows.quantisation->layout.block_elements),
                                    to + (row - first) * K);
    });
  };
  if (x_NK.scalar_type() == torch::kBFloat16 && has_gemm_bfloat16()) {
    const UnpackBFloat16 rounded = [&](int64_t first, int64_t n, int64_t k, int64_t columns,
                                       c10::BFloat16* to, int64_t stride) {
      for_parts(parts, K, first, first + n, [&](int64_t at, const BlockRows& rows) {
        round_rows(*rows.quantisation, rows.bytes + row_bytes(rows, k), row_bytes(rows, K), rows.n, columns,
                   reinterpret_cast<uint16_t*>(to + (at - first) * stride), stride);
      });
    };
    gemm_bfloat16(x_NK.const_data_ptr<c10::BFloat16>(), rounded, b, out_NV.mutable_data_ptr<c10::BFloat16>(),
                  N, V, K);
    return out_NV;
  }
  if (x_NK.scalar_type() == torch::kFloat32 && has_gemm_rows()) {
    gemm_rows(x_NK.const_data_ptr<float>(), unpack, b, out_NV.mutable_data_ptr<float>(), N, V, K);
    return out_NV;
  }
  // Rows of numbers a few at a time, by ATen's products.
  constexpr int64_t kPanelValues = 1 << 20;
  const int64_t step = std::max<int64_t>(1, kPanelValues / std::max<int64_t>(K, 1));
  auto panel = at::empty({std::min(step, V), K}, torch::kFloat32);
  for (int64_t first = 0; first < V; first += step) {
    const int64_t n = std::min(step, V - first);
    parallel_for(0, n, std::max<int64_t>(1, (1 << 16) / K), [&](int64_t a, int64_t b) {
      unpack(first + a, b - a, panel.mutable_data_ptr<float>() + a * K);
    });
    out_NV.narrow(1, first, n).copy_(at::linear(x_NK, panel.narrow(0, 0, n).to(x_NK.scalar_type())));
  }
  return bias.defined() ? (out_NV + bias).to(x_NK.scalar_type()) : out_NV;
}

}  // namespace introspect::ops

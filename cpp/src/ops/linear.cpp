#include "introspect/ops/linear.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/reused_memory.h"
#include "introspect/core/check.h"
#include "ops/check_bias.h"
#include "ops/equal_rows.h"
#include "ops/few_rows.h"
#include "ops/gemm.h"
#include "ops/gemm_bfloat16.h"
#include "ops/needs_grad.h"
#include "ops/vector.h"

namespace introspect::ops {

namespace {

constexpr int64_t kUnroll = 4;  // independent accumulators, to hide the latency of the additions
constexpr int64_t kBytesPerTask = 1 << 16;
constexpr int64_t kBytesAhead = 2048;  // prefetched beyond what is read; may pass the end

/// out[n, v] = x[n, :] . w[v, :] for v in [first, last), float32 accumulation.
template <typename V, int N, typename W>
INTROSPECT_INLINE void dot_rows(const float* x, const W* w, float* out, int64_t D, int64_t n_outputs,
                                int64_t first, int64_t last) {
  constexpr int64_t step = V::width * kUnroll;
  for (int64_t v = first; v < last; ++v) {
    const W* row = w + v * D;
    typename V::Floats acc[N][kUnroll] = {};
    int64_t d = 0;
    for (; d + step <= D; d += step) {
      const char* ahead = reinterpret_cast<const char*>(row + d) + kBytesAhead;
      for (size_t byte = 0; byte < step * sizeof(W); byte += 64) __builtin_prefetch(ahead + byte);
      for (int64_t u = 0; u < kUnroll; ++u) {
        const auto weight = V::load(row + d + u * V::width);
        for (int n = 0; n < N; ++n) acc[n][u] += V::load(x + n * D + d + u * V::width) * weight;
      }
    }
    for (; d + V::width <= D; d += V::width) {
      const auto weight = V::load(row + d);
      for (int n = 0; n < N; ++n) acc[n][0] += V::load(x + n * D + d) * weight;
    }
    for (int n = 0; n < N; ++n) {
      float total = V::sum((acc[n][0] + acc[n][1]) + (acc[n][2] + acc[n][3]));
      for (int64_t rest = d; rest < D; ++rest) total += x[n * D + rest] * static_cast<float>(row[rest]);
      out[n * n_outputs + v] = total;
    }
  }
}

template <typename V, typename W>
INTROSPECT_INLINE void few_rows(const float* x, const W* w, float* out, int64_t N, int64_t D,
                                int64_t n_outputs, int64_t first, int64_t last) {
  with_row_count(N, [&](auto n) INTROSPECT_INLINED {
    dot_rows<V, decltype(n)::value>(x, w, out, D, n_outputs, first, last);
  });
}

/// x [N, D] float32 times the rows of w [V, D] -> float32 [N, V], for N <= kFewRows.
torch::Tensor matvec(const torch::Tensor& x_ND, const torch::Tensor& w_VD) {
  const int64_t N = x_ND.size(0), D = x_ND.size(1), V = w_VD.size(0);
  auto out_NV = reused_empty({N, V}, x_ND.options());
  const float* x = x_ND.const_data_ptr<float>();
  float* out = out_NV.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, kBytesPerTask / (D * static_cast<int64_t>(w_VD.element_size())));
  parallel_for(0, V, grain, [&](int64_t first, int64_t last) {
    with_lanes([&](auto lanes) INTROSPECT_INLINED {
      if (w_VD.scalar_type() == torch::kFloat32)
        few_rows<decltype(lanes)>(x, w_VD.const_data_ptr<float>(), out, N, D, V, first, last);
      else
        few_rows<decltype(lanes)>(x, w_VD.const_data_ptr<c10::BFloat16>(), out, N, D, V, first, last);
    });
  });
  return out_NV;
}

bool has_kernel(const torch::Tensor& weight) {
  const auto dtype = weight.scalar_type();
  return weight.is_cpu() && weight.is_contiguous() && (dtype == torch::kFloat32 || dtype == torch::kBFloat16);
}

template <typename X, typename W>
void multiply(const torch::Tensor& x_ND, const torch::Tensor& w_VD, const torch::Tensor& b_V,
              torch::Tensor& out_NV) {
  gemm_rows(x_ND.const_data_ptr<X>(), w_VD.const_data_ptr<W>(),
            b_V.defined() ? b_V.const_data_ptr<float>() : nullptr, out_NV.mutable_data_ptr<X>(), x_ND.size(0),
            w_VD.size(0), x_ND.size(1));
}

/// x [N, D] times the rows of w [V, D], plus b [V] or nothing -> [N, V] in the precision of x, summed in float32.
torch::Tensor product(const torch::Tensor& x_ND, const torch::Tensor& w_VD, const torch::Tensor& b_V) {
  auto out_NV = reused_empty({x_ND.size(0), w_VD.size(0)}, x_ND.options());
  const auto x = x_ND.contiguous();
  const auto bias = b_V.defined() ? b_V.to(torch::kFloat32).contiguous() : b_V;
  if (w_VD.scalar_type() == torch::kFloat32)
    multiply<float, float>(x, w_VD, bias, out_NV);
  else if (x.scalar_type() == torch::kBFloat16 && has_gemm_bfloat16())
    gemm_bfloat16(x.const_data_ptr<c10::BFloat16>(), w_VD.const_data_ptr<c10::BFloat16>(),
                  bias.defined() ? bias.const_data_ptr<float>() : nullptr,
                  out_NV.mutable_data_ptr<c10::BFloat16>(), x.size(0), w_VD.size(0), x.size(1));
  else if (x.scalar_type() == torch::kFloat32)
    multiply<float, c10::BFloat16>(x, w_VD, bias, out_NV);
  else
    multiply<c10::BFloat16, c10::BFloat16>(x, w_VD, bias, out_NV);
  return out_NV;
}

/// True if `product` is there for x in precision `x` and these weights, and quicker than ATen.
bool has_product(torch::ScalarType x, const torch::Tensor& weight) {
  if (!has_kernel(weight) || weight.numel() == 0) return false;
  if (x == torch::kFloat32) return has_gemm_rows();
  return x == torch::kBFloat16 && weight.scalar_type() == x &&
         (has_gemm_bfloat16() || has_gemm_rows_bfloat16());
}

/// True if few rows have a kernel of their own: one sum over a whole row of weights, where many rows take them in
/// another order. The products of bfloat16 give every number of rows the same bits.
bool has_few_rows(torch::ScalarType x, const torch::Tensor& weight) {
  if (EqualRows::are_wanted() && has_product(x, weight)) return false;
  return has_kernel(weight) && !(x == torch::kBFloat16 && has_gemm_bfloat16());
}

/// float32 x [N, D] times bfloat16 rows [V, D] -> float32 [N, V], where a device multiplies bfloat16 into float32.
///
/// x is the sum of three numbers of 8 bits each, exactly; the three are rows of one product, which reads the weights once
/// and keeps them as they are. Some rows at a time: their sums take three times the room of the result.
torch::Tensor product_in_parts(const torch::Tensor& x_ND, const torch::Tensor& w_VD) {
  constexpr int64_t kRowsAtOnce = 512;
  const auto out_NV = at::empty({x_ND.size(0), w_VD.size(0)}, x_ND.options());
  for (int64_t first = 0; first < x_ND.size(0); first += kRowsAtOnce) {
    const int64_t n = std::min(kRowsAtOnce, x_ND.size(0) - first);
    auto rest_nD = x_ND.narrow(0, first, n);
    std::vector<torch::Tensor> parts;
    for (int i = 0; i < 3; ++i) {
      parts.push_back(rest_nD.to(torch::kBFloat16));
      if (i < 2) rest_nD = rest_nD - parts.back();
    }
    const auto sums = at::mm(at::cat(parts, 0), w_VD.t(), torch::kFloat32);
    auto to_nV = out_NV.narrow(0, first, n);
    at::add_out(to_nV, sums.narrow(0, 2 * n, n), sums.narrow(0, n, n))
        .add_(sums.narrow(0, 0, n));  // the smallest first
  }
  return out_NV;
}

}  // namespace

torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) {
  check<ShapeError>(x.dim() > 0 && weight.dim() == 2 && x.size(-1) == weight.size(1),
                    "linear: x [..., D] and weight [V, D] are required, got ", x.sizes(), " and ",
                    weight.sizes());
  check_bias("linear: the bias", bias, weight.size(0));
  const int64_t D = weight.size(1);
  const int64_t rows = x.numel() / std::max<int64_t>(1, D);
  const bool fits = rows > 0 && x.scalar_type() == weight.scalar_type() && !needs_grad(x, weight, bias);
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  if (fits && rows <= kFewRows && has_few_rows(x.scalar_type(), weight)) {
    auto y = matvec(x.reshape({rows, D}).to(torch::kFloat32).contiguous(), weight);
    if (bias.defined()) y.add_(bias);
    return y.to(x.scalar_type()).view(sizes);
  }
  if (fits && has_product(x.scalar_type(), weight))
    return product(x.reshape({rows, D}), weight, bias).view(sizes);
  return bias.defined() ? at::linear(x, weight, bias) : at::linear(x, weight);
}

torch::Tensor linear_fp32(const torch::Tensor& x_ND, const torch::Tensor& weight_VD) {
  check<ShapeError>(x_ND.dim() == 2 && weight_VD.dim() == 2 && x_ND.size(1) == weight_VD.size(1),
                    "linear_fp32: x [N, D] and weight [V, D] are required, got ", x_ND.sizes(), " and ",
                    weight_VD.sizes());
  const bool plain = x_ND.size(0) > 0 && !needs_grad(x_ND, weight_VD);
  if (plain && x_ND.size(0) <= kFewRows && has_few_rows(torch::kFloat32, weight_VD))
    return matvec(x_ND.contiguous(), weight_VD);
  if (plain && has_product(x_ND.scalar_type(), weight_VD)) return product(x_ND, weight_VD, {});
  if (weight_VD.scalar_type() == torch::kFloat32) return at::linear(x_ND, weight_VD);
  if (plain && weight_VD.is_cuda() && weight_VD.scalar_type() == torch::kBFloat16)
    return product_in_parts(x_ND, weight_VD);
  // Widened block by block: the whole unembedding in float32 would double the memory of a bfloat16 model.
  constexpr int64_t kBlockRows = 8192;
  std::vector<torch::Tensor> blocks;
  for (int64_t v = 0; v < weight_VD.size(0); v += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, weight_VD.size(0) - v);
    blocks.push_back(at::linear(x_ND, weight_VD.narrow(0, v, rows).to(torch::kFloat32)));
  }
  return at::cat(blocks, 1);
}

}  // namespace introspect::ops

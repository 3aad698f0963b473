#include "introspect/ops/norm.h"

#include <cmath>
#include <type_traits>

#include "core/parallel.h"
#include "core/reused_memory.h"
#include "introspect/core/check.h"
#include "ops/needs_grad.h"
#include "ops/vector.h"

namespace introspect::ops {

namespace {

constexpr int64_t kElementsPerTask = 1 << 15;

/// The mean of squares of a row, in float32.
template <typename V, typename T>
INTROSPECT_INLINE float mean_square(const T* x, int64_t D) {
  typename V::Floats acc[2] = {};
  int64_t d = 0;
  for (; d + 2 * V::width <= D; d += 2 * V::width)
    for (int64_t u = 0; u < 2; ++u) {
      const auto v = V::load(x + d + u * V::width);
      acc[u] += v * v;
    }
  float total = V::sum(acc[0] + acc[1]);
  for (; d < D; ++d) total += static_cast<float>(x[d]) * static_cast<float>(x[d]);
  return total / static_cast<float>(D);
}

/// Rows [first, last) of x times their inverse scale, rounded to T, times the weight (none: null), rounded again.
/// Where x is narrower than the weight, the product is rounded at its end only.
template <typename V, typename T, typename W>
INTROSPECT_INLINE void normalize_rows(const T* x, const W* weight, T* out, int64_t D, float eps,
                                      int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const T* in = x + row * D;
    T* to = out + row * D;
    const float inverse_scale = 1.0f / std::sqrt(mean_square<V>(in, D) + eps);
    int64_t d = 0;
    for (; d + V::width <= D; d += V::width) {
      auto y = V::load(in + d) * inverse_scale;
      if (std::is_same_v<T, W>) y = V::template rounded_to<T>(y);
      V::store(to + d, weight ? V::load(weight + d) * y : y);
    }
    for (; d < D; ++d) {
      float y = static_cast<float>(in[d]) * inverse_scale;
      if (std::is_same_v<T, W>) y = static_cast<float>(static_cast<T>(y));
      to[d] = static_cast<T>(weight ? static_cast<float>(weight[d]) * y : y);
    }
  }
}

template <typename V, typename T>
INTROSPECT_INLINE void scale_rows(const T* x, float* out, int64_t D, float eps, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) out[row] = std::sqrt(mean_square<V>(x + row * D, D) + eps);
}

using BFloat16 = c10::BFloat16;

/// True if x goes through the kernels above. float64 does not: transformers' bits are wanted there.
bool has_kernel(const torch::Tensor& x, const torch::Tensor& weight) {
  const auto dtype = x.scalar_type();
  return x.is_cpu() && !needs_grad(x, weight) && x.numel() > 0 &&
         (dtype == torch::kFloat32 || dtype == torch::kBFloat16);
}

template <typename Rows>
void for_rows(const torch::Tensor& x, const Rows& rows) {
  const int64_t D = x.size(-1);
  parallel_for(0, x.numel() / D, std::max<int64_t>(1, kElementsPerTask / D), rows);
}

/// x [..., D] normalised by the kernels, weight in x's dtype, float32 or undefined.
torch::Tensor rms_by_kernel(const torch::Tensor& x_any, const torch::Tensor& weight, double eps) {
  const auto x = x_any.contiguous();
  const int64_t D = x.size(-1);
  auto out = reused_empty(x.sizes(), x.options());
  const auto run = [&]<typename T, typename W>(const T* in, const W* w, T* to) {
    for_rows(x, [&](int64_t first, int64_t last) {
      with_rounding_lanes([&](auto lanes) INTROSPECT_INLINED {
        normalize_rows<decltype(lanes)>(in, w, to, D, static_cast<float>(eps), first, last);
      });
    });
  };
  if (x.scalar_type() == torch::kFloat32)
    run(x.const_data_ptr<float>(), weight.defined() ? weight.const_data_ptr<float>() : nullptr,
        out.mutable_data_ptr<float>());
  else if (weight.defined() && weight.scalar_type() == torch::kFloat32)
    run(x.const_data_ptr<BFloat16>(), weight.const_data_ptr<float>(), out.mutable_data_ptr<BFloat16>());
  else
    run(x.const_data_ptr<BFloat16>(), weight.defined() ? weight.const_data_ptr<BFloat16>() : nullptr,
        out.mutable_data_ptr<BFloat16>());
  return out;
}

/// x over its scale in float32, by ATen's operations, whose bits are transformers'.
torch::Tensor normalized_float32(const torch::Tensor& x, double eps) {
  const auto x32 = x.to(torch::kFloat32);
  return x32 * at::rsqrt(x32.pow(2).mean({-1}, /*keepdim=*/true).add(eps));
}

/// True if ATen has one kernel for x on its device. float64 keeps transformers' float32.
bool has_fused(const torch::Tensor& x) {
  return !x.is_cpu() && x.scalar_type() != torch::kFloat64;
}

void check_weight(const char* who, const torch::Tensor& x, const torch::Tensor& weight) {
  check<ShapeError>(weight.dim() == 1 && x.dim() > 0 && weight.size(0) == x.size(-1), who,
                    ": weight must be [", x.dim() > 0 ? x.size(-1) : 0, "], got ", weight.sizes());
}

}  // namespace

torch::Tensor rms_normalize(const torch::Tensor& x, double eps) {
  if (has_kernel(x, {})) return rms_by_kernel(x, {}, eps);
  if (has_fused(x)) return at::rms_norm(x, {x.size(-1)}, {}, eps);
  return normalized_float32(x, eps).to(x.scalar_type());
}

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  check_weight("rms_norm", x, weight);
  if (has_kernel(x, weight) && weight.scalar_type() == x.scalar_type() && weight.is_contiguous())
    return rms_by_kernel(x, weight, eps);
  // In 16 bits the fused kernel would round once, where this rounds before the weight is applied, too.
  if (has_fused(x) && x.scalar_type() == torch::kFloat32 && weight.scalar_type() == torch::kFloat32)
    return at::rms_norm(x, {x.size(-1)}, weight, eps);
  return weight * rms_normalize(x, eps);
}

torch::Tensor gemma_rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  check_weight("gemma_rms_norm", x, weight);
  if (has_kernel(x, weight) && weight.scalar_type() == torch::kFloat32 && weight.is_contiguous())
    return rms_by_kernel(x, weight, eps);
  if (has_fused(x) && weight.scalar_type() == torch::kFloat32)
    return at::rms_norm(x.to(torch::kFloat32), {x.size(-1)}, weight, eps).to(x.scalar_type());
  return (normalized_float32(x, eps) * weight).to(x.scalar_type());
}

torch::Tensor rms_scale(const torch::Tensor& x, double eps) {
  if (!has_kernel(x, {})) return x.to(torch::kFloat32).pow(2).mean({-1}, /*keepdim=*/true).add(eps).sqrt();
  const auto rows = x.contiguous();
  const int64_t D = rows.size(-1);
  auto sizes = x.sizes().vec();
  sizes.back() = 1;
  auto out = at::empty(sizes, rows.options().dtype(torch::kFloat32));
  float* to = out.mutable_data_ptr<float>();
  for_rows(rows, [&](int64_t first, int64_t last) {
    with_rounding_lanes([&](auto lanes) INTROSPECT_INLINED {
      if (rows.scalar_type() == torch::kFloat32)
        scale_rows<decltype(lanes)>(rows.const_data_ptr<float>(), to, D, static_cast<float>(eps), first,
                                    last);
      else
        scale_rows<decltype(lanes)>(rows.const_data_ptr<BFloat16>(), to, D, static_cast<float>(eps), first,
                                    last);
    });
  });
  return out;
}

torch::Tensor layer_norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                         double eps) {
  check_weight("layer_norm", x, weight);
  return at::layer_norm(x, {x.size(-1)}, weight, bias, eps);
}

torch::Tensor layer_normalize(const torch::Tensor& x, double eps) {
  return at::layer_norm(x, {x.size(-1)}, {}, {}, eps);
}

torch::Tensor layer_scale(const torch::Tensor& x, double eps) {
  const auto wide = x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32);
  return wide.var({-1}, /*correction=*/0, /*keepdim=*/true).add(eps).sqrt();
}

}  // namespace introspect::ops

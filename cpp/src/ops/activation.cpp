#include "introspect/ops/activation.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/reused_memory.h"
#include "introspect/core/check.h"
#include "ops/needs_grad.h"
#include "ops/silu_times.h"

namespace introspect::ops {

namespace {

using BFloat16 = c10::BFloat16;

constexpr int64_t kElementsPerTask = 1 << 14;

/// How far apart rows [..., M] lie that follow one another evenly and are dense themselves; 0: they do not.
int64_t row_stride(const torch::Tensor& x) {
  const int64_t dim = x.dim();
  if (dim == 0 || x.stride(dim - 1) != 1) return 0;
  if (dim == 1) return x.size(0);
  for (int64_t d = dim - 2; d > 0; --d)
    if (x.stride(d - 1) != x.size(d) * x.stride(d)) return 0;
  return x.stride(dim - 2);
}

/// One register of numbers.
template <typename V>
INTROSPECT_INLINE void gated_silu(const BFloat16* gate, const BFloat16* x, BFloat16* out) {
  V::store(out, silu_times<V>(V::load(gate), V::load(x)));
}

template <typename V>
INTROSPECT_INLINE void gated_silu_row(const BFloat16* gate, const BFloat16* x, BFloat16* out, int64_t M) {
  int64_t i = 0;
  for (; i + V::width <= M; i += V::width) gated_silu<V>(gate + i, x + i, out + i);
  if (i == M) return;
  BFloat16 rest[3][V::width] = {};
  std::copy(gate + i, gate + M, rest[0]);
  std::copy(x + i, x + M, rest[1]);
  gated_silu<V>(rest[0], rest[1], rest[2]);
  std::copy(rest[2], rest[2] + (M - i), out + i);
}

bool has_gated_silu(const torch::Tensor& gate, const torch::Tensor& x) {
  const bool graph = needs_grad(gate, x);
  return gate.is_cpu() && x.is_cpu() && !graph && gate.scalar_type() == torch::kBFloat16 &&
         x.scalar_type() == torch::kBFloat16 && gate.sizes() == x.sizes() && gate.numel() > 0 &&
         row_stride(gate) > 0 && row_stride(x) > 0;
}

torch::Tensor gated_silu(const torch::Tensor& gate, const torch::Tensor& x) {
  auto out = reused_empty(gate.sizes(), gate.options());
  const int64_t M = gate.size(-1), gate_stride = row_stride(gate), x_stride = row_stride(x);
  const auto* g = gate.const_data_ptr<BFloat16>();
  const auto* in = x.const_data_ptr<BFloat16>();
  auto* to = out.mutable_data_ptr<BFloat16>();
  parallel_for(
      0, gate.numel() / M, std::max<int64_t>(1, kElementsPerTask / M), [&](int64_t first, int64_t last) {
        with_rounding_lanes([&](auto lanes) INTROSPECT_INLINED {
          for (int64_t row = first; row < last; ++row)
            gated_silu_row<decltype(lanes)>(g + row * gate_stride, in + row * x_stride, to + row * M, M);
        });
      });
  return out;
}

}  // namespace

Activation parse_activation(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new") return Activation::kGeluNew;
  check<ConfigError>(name == "swiglu_clamped",
                     "activation: must be silu, gelu, gelu_new or swiglu_clamped, got '", name, "'");
  return Activation::kSwigluClamped;
}

torch::Tensor activate(Activation kind, const torch::Tensor& x) {
  switch (kind) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluNew:
      return at::gelu(x, "tanh");
    case Activation::kSwigluClamped:
      throw ConfigError("activation: swiglu_clamped needs a gate");
  }
  return {};
}

torch::Tensor gated(Activation kind, const torch::Tensor& gate, const torch::Tensor& x) {
  if (kind == Activation::kSwigluClamped) {
    const auto g = gate.clamp_max(kSwigluLimit);
    return (x.clamp(-kSwigluLimit, kSwigluLimit) + 1) * (g * (g * kSwigluAlpha).sigmoid());
  }
  if (kind == Activation::kSilu && has_gated_silu(gate, x)) return gated_silu(gate, x);
  const bool graph = needs_grad(gate, x);
  if (graph) return activate(kind, gate) * x;
  if (kind != Activation::kSilu || gate.scalar_type() != x.scalar_type()) return activate(kind, gate).mul_(x);
  auto y = reused_empty(gate.sizes(), gate.options());
  return at::silu_out(y, gate).mul_(x);
}

}  // namespace introspect::ops

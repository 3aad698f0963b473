#include "introspect/ops/gated_mlp.h"

#include "core/reused_memory.h"
#include "introspect/core/check.h"
#include "ops/check_bias.h"
#include "ops/gemm_bfloat16.h"
#include "ops/needs_grad.h"

namespace introspect::ops {

namespace {

using BFloat16 = c10::BFloat16;

bool is_plain(const torch::Tensor& t) {
  return t.is_cpu() && t.scalar_type() == torch::kBFloat16 && !needs_grad(t);
}

torch::Tensor float32(const torch::Tensor& bias) {
  return bias.defined() ? bias.to(torch::kFloat32).contiguous() : bias;
}

const float* numbers(const torch::Tensor& bias) {
  return bias.defined() ? bias.const_data_ptr<float>() : nullptr;
}

}  // namespace

bool has_gated_mlp(const torch::Tensor& x, const torch::Tensor& W_in, const torch::Tensor& b_in,
                   const torch::Tensor& W_out, const torch::Tensor& b_out) {
  const int64_t D = W_in.size(1), M = W_out.size(1);
  return is_plain(x) && is_plain(W_in) && is_plain(W_out) && !needs_grad(b_in, b_out) &&
         W_in.is_contiguous() && W_out.is_contiguous() && x.dim() > 0 && x.size(-1) == D &&
         W_in.size(0) == 2 * M && D > 0 && M > 0 && has_gated_mlp_bfloat16(x.numel() / D, D, M);
}

torch::Tensor gated_mlp(const torch::Tensor& x_any, const torch::Tensor& W_in, const torch::Tensor& b_in,
                        const torch::Tensor& W_out, const torch::Tensor& b_out) {
  check<ShapeError>(has_gated_mlp(x_any, W_in, b_in, W_out, b_out), "gated_mlp: not there for x ",
                    x_any.sizes(), " of ", x_any.scalar_type(), " and weights ", W_in.sizes(), " and ",
                    W_out.sizes());
  const int64_t D = W_in.size(1), M = W_out.size(1), N = W_out.size(0);
  check_bias("gated_mlp: input biases", b_in, 2 * M);
  check_bias("gated_mlp: output biases", b_out, N);
  const auto x = x_any.contiguous(), in = float32(b_in), out = float32(b_out);
  auto sizes = x.sizes().vec();
  sizes.back() = N;
  auto y = reused_empty(sizes, x.options());
  gated_mlp_bfloat16(x.const_data_ptr<BFloat16>(), W_in.const_data_ptr<BFloat16>(), numbers(in),
                     W_out.const_data_ptr<BFloat16>(), numbers(out), y.mutable_data_ptr<BFloat16>(),
                     x.numel() / D, D, M, N);
  return y;
}

}  // namespace introspect::ops

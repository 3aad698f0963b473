#include "introspect/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "introspect/core/check.h"
#include "ops/attention_bfloat16.h"
#include "ops/needs_grad.h"
#include "ops/tree_attention.h"

namespace introspect::ops {

namespace {

/// Query heads of one group side by side: [B * G, R, T, K], so that a group's keys serve its R heads by stride 0.
torch::Tensor group_queries(const torch::Tensor& q_BTHK, int64_t G) {
  const int64_t B = q_BTHK.size(0), T = q_BTHK.size(1), H = q_BTHK.size(2), K = q_BTHK.size(3);
  return q_BTHK.transpose(1, 2).reshape({B * G, H / G, T, K});
}

torch::Tensor group_keys(const torch::Tensor& k_BGSK, int64_t R) {
  const int64_t B = k_BGSK.size(0), G = k_BGSK.size(1), S = k_BGSK.size(2), K = k_BGSK.size(3);
  return k_BGSK.reshape({B * G, 1, S, K}).expand({B * G, R, S, K});
}

void check_shapes(const char* who, const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK) {
  check<ShapeError>(q_BTHK.dim() == 4 && k_BGSK.dim() == 4 && q_BTHK.size(0) == k_BGSK.size(0) &&
                        q_BTHK.size(3) == k_BGSK.size(3) && q_BTHK.size(2) % k_BGSK.size(1) == 0,
                    who,
                    ": queries [B, T, H, K] and keys [B, G, S, K] with H a multiple of G are required, got ",
                    q_BTHK.sizes(), " and ", k_BGSK.sizes());
}

TokenTree tree_of(const AttentionMask& mask) {
  return {mask.parents, mask.queries, mask.window};
}

/// True if a mask is more than nothing or a square causal one, which the fused products know.
bool needs_mask(const AttentionMask& mask, int64_t T, int64_t S) {
  return mask.additive.defined() || mask.parents.defined() || (mask.causal && T > 1 && T != S);
}

/// The mask of `mask` as an additive tensor broadcastable to [B, H, T, S]; undefined if every key may be seen.
torch::Tensor as_additive(const AttentionMask& mask, int64_t T, int64_t S, const torch::Tensor& like) {
  if (mask.additive.defined()) return mask.additive;
  if (mask.parents.defined()) return tree_mask(tree_of(mask), T, like.options());
  if (!mask.causal || T == 1) return {};
  const auto minus_inf = at::full({T, S}, -std::numeric_limits<double>::infinity(), like.options());
  return minus_inf.triu(S - T + 1);
}

/// True if there is a 0 in z [B, T, H].
template <typename Number>
bool any_zero(const torch::Tensor& z_BTH) {
  const auto* z = z_BTH.const_data_ptr<Number>();
  for (int64_t b = 0; b < z_BTH.size(0); ++b)
    for (int64_t t = 0; t < z_BTH.size(1); ++t)
      for (int64_t h = 0; h < z_BTH.size(2); ++h)
        if (z[b * z_BTH.stride(0) + t * z_BTH.stride(1) + h * z_BTH.stride(2)] == Number(0)) return true;
  return false;
}

/// True if a row of z [B, T, H, K] may have lost its NaN. ATen's fused product on the CPU gives 0 for a query whose scores
/// are all NaN, as for one that sees nothing: a 0 makes it worth a look at how large the scores can be.
bool may_hide_nan(const torch::Tensor& z_BTHK, const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                  double scale) {
  if (!z_BTHK.is_cpu() || z_BTHK.numel() == 0 || k_BGSK.numel() == 0) return false;
  const auto z_BTH = z_BTHK.detach().select(-1, 0);
  const auto dtype = z_BTH.scalar_type();
  const bool zero = dtype == torch::kFloat32    ? any_zero<float>(z_BTH)
                    : dtype == torch::kFloat64  ? any_zero<double>(z_BTH)
                    : dtype == torch::kBFloat16 ? any_zero<c10::BFloat16>(z_BTH)
                                                : any_zero<c10::Half>(z_BTH);
  if (!zero) return false;
  const auto largest = [](const torch::Tensor& x) {  // NaN if there is one
    return x.detach().abs().amax().item<double>();
  };
  const double most = largest(q_BTHK) * largest(k_BGSK) * static_cast<double>(q_BTHK.size(3)) *
                      std::max(1.0, std::abs(scale));
  return !(most < (dtype == torch::kFloat64 ? 1e308 : 1e38));
}

}  // namespace

torch::Tensor attention(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK, const torch::Tensor& v_BGSK,
                        double scale, const AttentionMask& mask, double soft_cap,
                        const torch::Tensor& sinks_H) {
  check_shapes("attention", q_BTHK, k_BGSK);
  const bool graph_of_sinks = needs_grad(sinks_H);
  if (mask.parents.defined() && !graph_of_sinks && has_tree_attention(q_BTHK, k_BGSK, v_BGSK))
    return tree_attention(q_BTHK, k_BGSK, v_BGSK, tree_of(mask), scale, soft_cap, sinks_H);
  // The fused product caps nothing and has no sinks. On an H200 the one for float32 that takes masks made one reading of
  // 120 in token trees wrong (0.3 of a logit, torch 2.11); products one by one did not.
  const bool masked_on_device = !q_BTHK.is_cpu() && needs_mask(mask, q_BTHK.size(1), k_BGSK.size(2));
  if (soft_cap > 0 || sinks_H.defined() || masked_on_device)
    return attend(attention_pattern(attention_scores(q_BTHK, k_BGSK, scale, mask, soft_cap), sinks_H),
                  v_BGSK);
  if (scale > 0 && !mask.parents.defined() && has_attention_bfloat16(q_BTHK, k_BGSK, v_BGSK, mask.additive)) {
    const auto z = attention_bfloat16(q_BTHK, k_BGSK, v_BGSK, scale, mask.additive, mask.causal);
    if (z.defined()) return z;
  }
  const int64_t B = q_BTHK.size(0), T = q_BTHK.size(1), H = q_BTHK.size(2), K = q_BTHK.size(3);
  const int64_t G = k_BGSK.size(1), S = k_BGSK.size(2), R = H / G;
  const bool is_causal = mask.causal && T > 1 && !needs_mask(mask, T, S);
  std::optional<torch::Tensor> additive;
  if (!is_causal) {
    auto tensor = as_additive(mask, T, S, q_BTHK);
    if (tensor.defined() && tensor.dim() == 4 && B > 1 && tensor.size(0) == B)  // one row per (batch, group)
      tensor = tensor.expand({B, G, T, S}).reshape({B * G, 1, T, S});
    if (tensor.defined()) additive = tensor;
  }
  // A device's fused kernels of 16 bits share a group's keys by themselves and take every layout: nothing is copied.
  if (!q_BTHK.is_cpu() && q_BTHK.element_size() == 2)
    return at::scaled_dot_product_attention(q_BTHK.transpose(1, 2), k_BGSK, v_BGSK, {}, /*dropout_p=*/0.0,
                                            is_causal, scale, /*enable_gqa=*/R > 1)
        .transpose(1, 2);
  const auto z =
      at::scaled_dot_product_attention(group_queries(q_BTHK, G), group_keys(k_BGSK, R), group_keys(v_BGSK, R),
                                       additive, /*dropout_p=*/0.0, is_causal, scale);
  auto z_BTHK = z.view({B, G, R, T, K}).permute({0, 3, 1, 2, 4}).reshape({B, T, H, K});
  if (may_hide_nan(z_BTHK, q_BTHK, k_BGSK, scale)) [[unlikely]]
    return at::where(z_BTHK == 0,
                     attend(attention_pattern(attention_scores(q_BTHK, k_BGSK, scale, mask)), v_BGSK),
                     z_BTHK);
  return z_BTHK;
}

torch::Tensor attention_scores(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK, double scale,
                               const AttentionMask& mask, double soft_cap) {
  check_shapes("attention_scores", q_BTHK, k_BGSK);
  const int64_t B = q_BTHK.size(0), T = q_BTHK.size(1), H = q_BTHK.size(2), K = q_BTHK.size(3);
  const int64_t G = k_BGSK.size(1), S = k_BGSK.size(2), R = H / G;
  const auto q = group_queries(q_BTHK, G).reshape({B * G, R * T, K});
  auto scores = at::matmul(q, k_BGSK.reshape({B * G, S, K}).transpose(1, 2)).view({B, H, T, S});
  const bool graph = needs_grad(scores);
  scores = graph ? scores * scale : scores.mul_(scale);
  if (soft_cap > 0) scores = (scores / soft_cap).tanh() * soft_cap;
  const auto additive = as_additive(mask, T, S, scores);
  if (!additive.defined()) return scores;
  return graph ? scores + additive : scores.add_(additive);
}

torch::Tensor attention_pattern(const torch::Tensor& scores_BHTS, const torch::Tensor& sinks_H) {
  const auto dtype = scores_BHTS.scalar_type();
  const auto wide = dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  if (!sinks_H.defined()) return at::softmax(scores_BHTS, -1, wide).to(dtype);
  const int64_t B = scores_BHTS.size(0), H = scores_BHTS.size(1), T = scores_BHTS.size(2);
  check<ShapeError>(sinks_H.dim() == 1 && sinks_H.size(0) == H, "attention_pattern: sinks must be [", H,
                    "], got ", sinks_H.sizes());
  const auto sinks = sinks_H.to(dtype).view({1, H, 1, 1}).expand({B, H, T, 1});
  return at::softmax(at::cat({scores_BHTS, sinks}, -1), -1, wide).slice(-1, 0, -1).to(dtype);
}

torch::Tensor attend(const torch::Tensor& pattern_BHTS, const torch::Tensor& v_BGSK) {
  const int64_t B = pattern_BHTS.size(0), H = pattern_BHTS.size(1), T = pattern_BHTS.size(2),
                S = pattern_BHTS.size(3);
  const int64_t G = v_BGSK.size(1), K = v_BGSK.size(3);
  const auto pattern = pattern_BHTS.reshape({B * G, H / G * T, S});
  return at::matmul(pattern, v_BGSK.reshape({B * G, S, K})).view({B, H, T, K}).transpose(1, 2);
}

AttentionMask mask_of_rows(const AttentionMask& mask, const torch::Tensor& rows, int64_t T, int64_t S,
                           torch::ScalarType dtype) {
  const auto whole =
      mask.parents.defined() ? tree_mask(tree_of(mask), T, rows.options().dtype(dtype)) : mask.additive;
  AttentionMask out;
  if (whole.defined()) {
    out.additive = whole.index_select(2, rows);
    return out;
  }
  if (!mask.causal) return mask;
  const auto hidden = at::arange(S, rows.options()).unsqueeze(0) > (rows + (S - T)).unsqueeze(1);
  const auto additive = at::zeros(hidden.sizes(), rows.options().dtype(dtype));
  out.additive = additive.masked_fill(hidden, -std::numeric_limits<double>::infinity()).view({1, 1, -1, S});
  return out;
}

torch::Tensor additive_mask(const torch::Tensor& real_BS, int64_t n_queries, torch::ScalarType dtype,
                            int64_t window) {
  const int64_t S = real_BS.size(1), T = n_queries;
  const auto options = real_BS.options();
  const auto causal_TS = at::ones({T, S}, options).tril(S - T);
  const auto self_TS = at::ones({T, S}, options).tril(S - T).triu(S - T);
  auto visible_BTS = real_BS.unsqueeze(1) & causal_TS;
  if (window > 0) {
    const auto number_BS = real_BS.to(torch::kLong).cumsum(1);  // of each key among the real ones of its row
    const auto distance_BTS = number_BS.narrow(1, S - T, T).unsqueeze(2) - number_BS.unsqueeze(1);
    visible_BTS = visible_BTS & (distance_BTS < window);
  }
  const auto visible_B1TS = visible_BTS.logical_or(self_TS).unsqueeze(1);
  const auto zero = at::zeros({}, options.dtype(dtype));
  return at::where(visible_B1TS, zero,
                   at::full({}, -std::numeric_limits<double>::infinity(), options.dtype(dtype)));
}

}  // namespace introspect::ops

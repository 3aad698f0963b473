#include "introspect/ops/logits.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

namespace introspect::ops {

namespace {

torch::Tensor log_probs(const torch::Tensor& logits) {
  return logits.to(torch::kCPU, torch::kFloat64).log_softmax(-1);
}

/// The mean of `values` under exp(log_p): what has no probability has no part in it.
torch::Tensor mean_under(const torch::Tensor& log_p, const torch::Tensor& values) {
  const auto p = log_p.exp();
  return (p * values).masked_fill(p == 0, 0).sum(-1);
}

/// Rows [N, V] on the CPU whose numbers stay in the cache, one share after the other: share(first, n).
template <typename Share>
void in_shares(const torch::Tensor& rows_NV, const Share& share) {
  constexpr int64_t kNumbers = 1 << 18;
  const auto at_once = std::max<int64_t>(1, kNumbers / std::max<int64_t>(1, rows_NV.size(1)));
  for (int64_t first = 0; first < rows_NV.size(0); first += at_once)
    share(first, std::min(at_once, rows_NV.size(0) - first));
}

/// [..., V] -> [N, V] in float32 or float64 on the CPU.
torch::Tensor as_rows(const torch::Tensor& logits) {
  const auto dtype = logits.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  return logits.to(torch::kCPU, dtype).reshape({-1, logits.size(-1)});
}

torch::Tensor log_sum(const torch::Tensor& logits, const std::vector<int64_t>& ids) {
  check<std::invalid_argument>(!ids.empty(), "set_log_odds: each set needs a token, got none");
  for (const int64_t id : ids)
    check<std::out_of_range>(id >= 0 && id < logits.size(-1), "set_log_odds: token ids must be 0 to ",
                             logits.size(-1) - 1, ", got ", id);
  return logits.index_select(-1, torch::tensor(ids, torch::kLong)).to(torch::kFloat64).logsumexp({-1});
}

void check_sizes(const char* who, const torch::Tensor& logits, const torch::Tensor& base) {
  check<ShapeError>(logits.size(-1) == base.size(-1), who, ": both logits must be of one vocabulary, got ",
                    logits.size(-1), " and ", base.size(-1), " tokens");
}

}  // namespace

torch::Tensor set_log_odds(const torch::Tensor& logits, const std::vector<int64_t>& yes,
                           const std::vector<int64_t>& no) {
  const auto here = logits.to(torch::kCPU);
  return log_sum(here, yes) - log_sum(here, no);
}

torch::Tensor entropy(const torch::Tensor& logits) {
  const auto log_p = log_probs(logits);
  return -mean_under(log_p, log_p);
}

torch::Tensor log_total(const torch::Tensor& logits) {
  const auto rows_NV = as_rows(logits);
  auto out_N = at::empty({rows_NV.size(0)}, torch::kFloat64);
  in_shares(rows_NV, [&](int64_t first, int64_t n) {
    const auto share_nV = rows_NV.narrow(0, first, n);
    const auto most_n1 = share_nV.amax({-1}, /*keepdim=*/true);
    out_N.narrow(0, first, n)
        .copy_((share_nV - most_n1).exp_().sum({-1}, /*keepdim=*/false, torch::kFloat64).log_() +
               most_n1.squeeze(-1));
  });
  return out_N.reshape(logits.sizes().slice(0, logits.dim() - 1));
}

torch::Tensor kl_divergence(const torch::Tensor& logits, const torch::Tensor& base_logits,
                            const torch::Tensor& base_log_total) {
  check<ShapeError>(logits.sizes() == base_logits.sizes(),
                    "kl_divergence: both logits must be of one shape, got ", logits.sizes(), " and ",
                    base_logits.sizes());
  const auto rows_NV = as_rows(logits), base_NV = as_rows(base_logits);
  auto out_N = at::empty({rows_NV.size(0)}, torch::kFloat64);
  // sum p (l - b) - (log sum exp l - log sum exp b), with p = e / sum e.
  in_shares(rows_NV, [&](int64_t first, int64_t n) {
    const auto share_nV = rows_NV.narrow(0, first, n);
    const auto most_n1 = share_nV.amax({-1}, /*keepdim=*/true);
    const auto e_nV = (share_nV - most_n1).exp_();
    const auto total_n = e_nV.sum({-1}, /*keepdim=*/false, torch::kFloat64);
    auto moved_nV = (share_nV - base_NV.narrow(0, first, n)).mul_(e_nV);
    auto moved_n = moved_nV.sum({-1}, /*keepdim=*/false, torch::kFloat64);
    if (!moved_n.isfinite().all().item<bool>())  // what has no probability has no part in it
      moved_n = moved_nV.masked_fill_(e_nV == 0, 0).sum({-1}, /*keepdim=*/false, torch::kFloat64);
    out_N.narrow(0, first, n).copy_(moved_n / total_n - total_n.log() - most_n1.squeeze(-1));
  });
  const auto base_total_N = base_log_total.defined() ? base_log_total.reshape({-1}) : log_total(base_NV);
  return (out_N + base_total_N).reshape(logits.sizes().slice(0, logits.dim() - 1));
}

std::pair<torch::Tensor, torch::Tensor> most_changed(const torch::Tensor& logits,
                                                     const torch::Tensor& base_logits, int64_t k,
                                                     bool raised) {
  check_sizes("most_changed", logits, base_logits);
  const auto changes_V = log_probs(logits) - log_probs(base_logits);
  auto [values, ids] = changes_V.topk(std::min(k, changes_V.size(0)), -1, /*largest=*/raised);
  return {values, ids};
}

}  // namespace introspect::ops

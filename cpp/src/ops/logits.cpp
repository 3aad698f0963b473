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

torch::Tensor kl_divergence(const torch::Tensor& logits, const torch::Tensor& base_logits) {
  check_sizes("kl_divergence", logits, base_logits);
  const auto log_p = log_probs(logits);
  return mean_under(log_p, log_p - log_probs(base_logits));
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

#include "analysis/softmax_effects.h"

#include "introspect/ops/attention.h"

namespace introspect::analysis {
namespace {

using torch::Tensor;

/// Scores in float64 [B, H, T, S], -infinity where a key is not seen.
Tensor scores(const SoftmaxInputs& in, const Tensor& q_BTHK, const Tensor& k_BTGK) {
  const int64_t T = q_BTHK.size(1);
  ops::AttentionMask mask;
  if (in.window > 0 && T > in.window) {
    const auto real = torch::ones({1, T}, torch::device(q_BTHK.device()).dtype(torch::kBool));
    mask.additive = ops::additive_mask(real, T, torch::kFloat64, in.window);
  }
  return in.attention().scores(q_BTHK.detach().to(torch::kFloat64),
                               k_BTGK.detach().to(torch::kFloat64).transpose(1, 2), mask);
}

/// The logarithm of what a row's exponentials sum to, its head's sink with them: [B, H, T, 1].
Tensor log_total(const SoftmaxInputs& in, const Tensor& scores_BHTS) {
  const auto total = scores_BHTS.logsumexp({-1}, /*keepdim=*/true);
  const auto& sinks = in.attention().weights().sinks;
  return sinks ? total.logaddexp(sinks->scores.to(torch::kFloat64).view({1, -1, 1, 1})) : total;
}

/// The share that goes to the sink.
Tensor sink_share(const SoftmaxInputs& in, const Tensor& log_total_BHT1) {
  const auto& sinks = in.attention().weights().sinks;
  if (!sinks) return at::zeros({}, log_total_BHT1.options());
  return (sinks->scores.to(torch::kFloat64).view({1, -1, 1, 1}) - log_total_BHT1).exp();
}

/// The sum over the last dimension of all entries but one's own, without subtracting.
Tensor sum_of_others(const Tensor& x) {
  const auto before = [](const Tensor& y) {  // of each entry
    return torch::cat({torch::zeros_like(y.narrow(-1, 0, 1)), y.cumsum(-1).narrow(-1, 0, y.size(-1) - 1)},
                      -1);
  };
  return before(x) + before(x.flip(-1)).flip(-1);
}

}  // namespace

Tensor query_effects(const SoftmaxInputs& in, const Tensor& gradient_BHTS) {
  const auto was = in.attention().pattern(scores(in, in.q_to, in.k_to)),
             is = in.attention().pattern(scores(in, in.q_from, in.k_to));
  return ((is - was) * gradient_BHTS.to(torch::kFloat64)).sum(-1).transpose(1, 2);
}

Tensor key_effects(const SoftmaxInputs& in, const Tensor& gradient_BHTS) {
  const auto was = scores(in, in.q_to, in.k_to), is = scores(in, in.q_to, in.k_from);
  const auto g = gradient_BHTS.to(torch::kFloat64), p = in.attention().pattern(was);
  const auto total = log_total(in, was), sink = sink_share(in, total);
  const auto others = sum_of_others(p) + sink, g_of_others = sum_of_others(p * g);
  const auto log_others = total + others.log();
  const auto weight = (is - log_others).sigmoid();
  const auto rest = torch::where(others > 0, g_of_others / others, 0);
  const auto change = weight * g + (1 - weight) * rest - (p * g).sum(-1, /*keepdim=*/true);
  const auto by_head_BHS = torch::where(was.isneginf(), 0, change).sum(2);
  const int64_t B = by_head_BHS.size(0), G = in.k_to.size(2);
  return by_head_BHS.view({B, G, -1, by_head_BHS.size(2)}).sum(2).transpose(1, 2);
}

}  // namespace introspect::analysis

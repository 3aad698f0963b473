#include "analysis/probe_scores.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string>

#include <torch/types.h>

#include "introspect/core/check.h"
#include "introspect/statistics/detection.h"

#include "statistics/samples.h"

namespace introspect::analysis {
namespace {

using statistics::Estimate;
using torch::Tensor;

std::vector<double> as_numbers(const Tensor& x) {
  const auto flat = x.to(torch::kFloat64).contiguous();
  const auto* first = flat.const_data_ptr<double>();
  return {first, first + flat.numel()};
}

/// Scores by which texts are ordered for each class against the rest; of two classes those of the second one alone.
std::vector<std::vector<double>> orderings(const Tensor& scores_NK, ProbeKind kind) {
  if (scores_NK.size(1) == 1) return {as_numbers(scores_NK.select(1, 0))};
  const auto compared = has_probabilities(kind) ? scores_NK.softmax(1) : scores_NK;
  std::vector<std::vector<double>> out;
  for (int64_t k = 0; k < scores_NK.size(1); ++k) out.push_back(as_numbers(compared.select(1, k)));
  return out;
}

/// One fold's texts of one class against the rest.
struct Comparison {
  std::vector<size_t> order;  // of the fold's texts by ascending score
  std::vector<double> scores;
  std::vector<bool> positive;
  Estimate auc;  // as the texts are, each once
};

std::vector<Comparison> comparisons(const Tensor& scores_NK, const std::vector<int64_t>& labels,
                                    const std::vector<int64_t>& folds, ProbeKind kind, double confidence) {
  std::vector<Comparison> out;
  const auto by_class = orderings(scores_NK, kind);
  for (size_t k = 0; k < by_class.size(); ++k) {
    const auto wanted = by_class.size() == 1 ? int64_t{1} : static_cast<int64_t>(k);
    for (const int64_t fold : std::set<int64_t>(folds.begin(), folds.end())) {
      std::vector<double> positives, negatives;
      Comparison one;
      for (size_t i = 0; i < labels.size(); ++i) {
        if (folds[i] != fold) continue;
        (labels[i] == wanted ? positives : negatives).push_back(by_class[k][i]);
        one.order.push_back(i);
      }
      if (positives.size() < 2 || negatives.size() < 2) continue;
      one.auc = statistics::auc(positives, negatives, confidence);
      one.scores = by_class[k];
      std::ranges::sort(one.order, {}, [&](size_t i) { return one.scores[i]; });
      for (const int64_t label : labels) one.positive.push_back(label == wanted);
      out.push_back(std::move(one));
    }
  }
  return out;
}

double mean_auc(const std::vector<Comparison>& of) {
  double sum = 0;
  for (const auto& one : of) sum += one.auc.value;
  return of.empty() ? std::nan("") : sum / static_cast<double>(of.size());
}

/// The mean AUC of weighted texts; NaN where some comparison has no weight on a side.
double weighted_auc(const std::vector<Comparison>& of, std::span<const double> weights) {
  double sum = 0;
  for (const auto& one : of) {
    double below = 0, ordered = 0, positive = 0;
    for (size_t first = 0, last = 0; first < one.order.size(); first = last) {
      double ties = 0, here = 0;
      for (; last < one.order.size() && one.scores[one.order[last]] == one.scores[one.order[first]]; ++last)
        (one.positive[one.order[last]] ? here : ties) += weights[one.order[last]];
      ordered += here * (below + ties / 2);
      below += ties;
      positive += here;
    }
    if (positive <= 0 || below <= 0) return std::nan("");
    sum += ordered / (positive * below);
  }
  return sum / static_cast<double>(of.size());
}

/// 1 for texts whose class is predicted.
std::vector<double> hits(const Tensor& scores_NK, const std::vector<int64_t>& labels) {
  const auto predicted =
      scores_NK.size(1) == 1 ? (scores_NK.select(1, 0) > 0).to(torch::kInt64) : std::get<1>(scores_NK.max(1));
  return as_numbers(predicted == torch::tensor(labels, torch::kInt64));
}

std::vector<statistics::Factor> factor_of(const std::vector<int64_t>& groups) {
  statistics::Factor factor{"group", {}};
  for (const int64_t group : groups) factor.levels.push_back(std::to_string(group));
  return {factor};
}

/// The mean of independent estimates, with a normal interval cut at 0 and 1.
Estimate mean_of_folds(const std::vector<Comparison>& of, double confidence) {
  double variance = 0;
  for (const auto& one : of) variance += one.auc.standard_error * one.auc.standard_error;
  const double n = static_cast<double>(of.size()), value = mean_auc(of), error = std::sqrt(variance) / n;
  const double z = statistics::normal_quantile(0.5 + confidence / 2);
  return {value, {std::max(0.0, value - z * error), std::min(1.0, value + z * error)}, error};
}

}  // namespace

bool has_probabilities(ProbeKind kind) {
  return kind == ProbeKind::kLogistic || kind == ProbeKind::kMassMeanCovariance;
}

Tensor losses(const Tensor& scores_NK, const Tensor& labels_N, ProbeKind kind) {
  const bool two = scores_NK.size(1) == 1;
  if (has_probabilities(kind)) {
    if (!two) return -scores_NK.log_softmax(1).gather(1, labels_N.unsqueeze(1)).squeeze(1);
    const auto z_N = scores_NK.select(1, 0);
    return at::softplus(at::where(labels_N == 1, -z_N, z_N));
  }
  const auto target_NK =
      two ? (labels_N == 1).unsqueeze(1) : labels_N.unsqueeze(1) == torch::arange(scores_NK.size(1));
  return (scores_NK - (target_NK.to(torch::kFloat64) * 2 - 1)).square().mean(1);
}

Judgement judge(const Tensor& scores_NK, const std::vector<int64_t>& labels, int64_t n_classes,
                const std::vector<int64_t>& folds, ProbeKind kind) {
  check<ShapeError>(scores_NK.size(1) == (n_classes == 2 ? 1 : n_classes),
                    "judge: scores do not fit the classes");
  const auto hit = hits(scores_NK, labels);
  const auto loss = losses(scores_NK, torch::tensor(labels, torch::kInt64), kind).mean().item<double>();
  return {statistics::mean_of(hit), mean_auc(comparisons(scores_NK, labels, folds, kind, 0.95)),
          has_probabilities(kind) ? loss : std::nan("")};
}

ProbeScores judge_with_intervals(const Tensor& scores_NK, const std::vector<int64_t>& labels,
                                 int64_t n_classes, const std::vector<int64_t>& folds,
                                 const std::vector<int64_t>& groups, ProbeKind kind,
                                 const IntervalOptions& options) {
  const auto plain = judge(scores_NK, labels, n_classes, folds, kind);
  const auto compared = comparisons(scores_NK, labels, folds, kind, options.confidence);
  const auto hit = hits(scores_NK, labels);
  ProbeScores out;
  out.log_loss = plain.log_loss;
  const bool has_groups = std::set<int64_t>(groups.begin(), groups.end()).size() > 1;
  if (!has_groups) {
    const auto share =
        statistics::proportion(static_cast<int64_t>(std::accumulate(hit.begin(), hit.end(), 0.0)),
                               static_cast<int64_t>(hit.size()), options.confidence);
    const double n = static_cast<double>(hit.size());
    out.accuracy = {share.value, share.interval, std::sqrt(share.value * (1 - share.value) / n)};
    out.auc = compared.empty() ? Estimate{std::nan(""), {0, 1}, std::nan("")}
                               : mean_of_folds(compared, options.confidence);
    return out;
  }
  const statistics::BootstrapOptions bootstrap{options.resamples, options.confidence,
                                               statistics::IntervalMethod::kPercentile, options.seed};
  const auto factors = factor_of(groups);
  out.accuracy = statistics::bootstrap_mean(hit, factors, bootstrap);
  out.auc = {std::nan(""), {0, 1}, std::nan("")};
  if (!compared.empty())
    out.auc = statistics::bootstrap(
        hit.size(), factors, [&](std::span<const double> weights) { return weighted_auc(compared, weights); },
        bootstrap);
  return out;
}

ProbeScores evaluate_probe(const Probe& probe, const Tensor& activations_ND,
                           const std::vector<int64_t>& labels, const std::vector<int64_t>& groups,
                           double confidence, int64_t resamples, uint64_t seed) {
  const auto n_classes = static_cast<int64_t>(probe.classes.size());
  auto scores = probe.scores(activations_ND);
  check<ShapeError>(scores.size(0) == static_cast<int64_t>(labels.size()) && activations_ND.dim() == 2,
                    "evaluate_probe: activations must be [", labels.size(), ", ", probe.width(), "], got ",
                    activations_ND.sizes());
  check<std::invalid_argument>(groups.empty() || groups.size() == labels.size(),
                               "evaluate_probe: every text must have one group, got ", groups.size(),
                               " groups for ", labels.size(), " texts");
  check<std::invalid_argument>(
      std::ranges::all_of(labels, [&](int64_t label) { return label >= 0 && label < n_classes; }),
      "evaluate_probe: labels must be among the probe's ", n_classes, " classes");
  check<std::invalid_argument>(std::set<int64_t>(labels.begin(), labels.end()).size() > 1,
                               "evaluate_probe: the labels must be of two classes or more, got one class");
  if (scores.dim() == 1) scores = scores.unsqueeze(1);
  return judge_with_intervals(scores, labels, n_classes, std::vector<int64_t>(labels.size(), 0), groups,
                              probe.kind, {confidence, resamples, seed});
}

}  // namespace introspect::analysis

#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/probe_study.h"

namespace introspect::analysis {

/// What scores of held-out texts are judged by.
struct Judgement {
  double accuracy = 0, auc = 0, log_loss = 0;
};

struct IntervalOptions {
  double confidence = 0.95;
  int64_t resamples = 1000;
  uint64_t seed = 0;
};

/// True of kinds whose scores are log-odds.
bool has_probabilities(ProbeKind kind);

/// The mean loss of each text, float64 [N]: log-loss of kinds with probabilities, squared error of targets 1 and -1
/// otherwise. scores_NK: K = 1 for two classes.
torch::Tensor losses(const torch::Tensor& scores_NK, const torch::Tensor& labels_N, ProbeKind kind);

/// Figures of held-out scores; folds without one of the classes do not count for the AUC.
Judgement judge(const torch::Tensor& scores_NK, const std::vector<int64_t>& labels, int64_t n_classes,
                const std::vector<int64_t>& folds, ProbeKind kind);

/// The same with intervals.
ProbeScores judge_with_intervals(const torch::Tensor& scores_NK, const std::vector<int64_t>& labels,
                                 int64_t n_classes, const std::vector<int64_t>& folds,
                                 const std::vector<int64_t>& groups, ProbeKind kind,
                                 const IntervalOptions& options);

}  // namespace introspect::analysis

#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/probe.h"
#include "introspect/export.h"

namespace introspect::analysis {

struct ProbeFitOptions {
  ProbeKind kind = ProbeKind::kLogistic;
  /// The inverse strength of the penalty, as in scikit-learn: 1 / C times half the squared weights (logistic) or the
  /// squared weights (ridge); mass means have none.
  double C = 1.0;
  /// Whether the activations are divided by their standard deviations over the texts; not given: of logistic and ridge.
  std::optional<bool> standardise;
};

/// Probes of several problems on the same activations. A problem is which rows it is fitted on, their labels, and C.
struct ProbeProblems {
  torch::Tensor rows_MN;    // bool: sets of rows
  torch::Tensor labels_YN;  // int64, classes from 0: sets of labels
  struct Problem {
    int64_t rows = 0, labels = 0;  // which of the sets
    double C = 1.0;
  };
  std::vector<Problem> problems;
  int64_t n_classes = 2;
};

/// Scores of activations x are x w + b.
struct ProbeWeights {
  torch::Tensor weights_PKD, bias_PK;  // float64; K = 1 for two classes
};

/// All the problems, by one solver. `tolerance` is ops::LogisticOptions', and `start` where its search begins; other kinds
/// are exact.
///
/// Throws std::invalid_argument for a kind that is not fitted, and as ops::logistic_regressions does. Every set of rows
/// must hold every class.
INTROSPECT_EXPORT ProbeWeights fit_problems(const torch::Tensor& activations_ND,
                                            const ProbeProblems& problems, const ProbeFitOptions& options,
                                            double tolerance = 1e-9, const ProbeWeights& start = {});

/// A probe fitted on all rows; classes get their names, and where it reads is the caller's to say.
///
/// In float64. Throws ShapeError for activations that are not [N, D] or another number of labels,
/// std::invalid_argument for labels of fewer than two classes or outside the names, activations that are not finite
/// (naming the text), and as fit_problems.
INTROSPECT_EXPORT Probe fit_probe(const torch::Tensor& activations_ND, const std::vector<int64_t>& labels,
                                  const std::vector<std::string>& classes,
                                  const ProbeFitOptions& options = {}, const ProbeWeights& start = {});

}  // namespace introspect::analysis

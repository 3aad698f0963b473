#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/probe_fit.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/statistics/bootstrap.h"

namespace introspect::analysis {

/// The labels of texts, and which texts belong together.
struct ProbeLabels {
  std::vector<int64_t> labels;  // classes from 0
  int64_t n_classes = 2;
  std::vector<int64_t>
      folds;  // of cross_validation.h: each text's scores are of the probe that has not seen its fold
  std::vector<int64_t> groups;  // of texts that share a template or a subject; empty: none do
  std::vector<int64_t> types;   // of the control task, such as the token that is read; empty: no control task
};

struct ProbeStudyOptions {
  ProbeKind kind = ProbeKind::kLogistic;
  std::optional<bool> standardise;
  /// Of several the one with the least held-out loss is taken, chosen anew in every fold by the other folds.
  std::vector<double> C = {1.0};
  int64_t nulls = 20;        ///< how often the labels are shuffled
  bool description = true;   ///< the description length (kinds with probabilities)
  double confidence = 0.95;  ///< of intervals
  int64_t resamples = 1000;  ///< of intervals over groups
  uint64_t seed = 0;
  Progress progress;
};

/// What held-out texts say of a probe.
struct ProbeScores {
  statistics::Estimate accuracy;  // share of the texts whose class is predicted
  statistics::Estimate auc;       // mean over folds; of more classes the mean of one against the rest
  double log_loss = 0;            // nats a text; NaN for kinds without probabilities
};

/// One layer's probe and how well it does.
struct ProbeStudy {
  Probe probe;             // fitted on all texts
  torch::Tensor held_out;  // float64 [N] or [N, K]: scores by the fold's probe
  ProbeScores scores;
  std::vector<double> null_accuracy, null_auc;  // of every shuffle of the labels
  std::optional<double> control_accuracy;       // of the control task
  std::optional<double> description_bits;       // online code of the labels given the activations
  std::optional<double> compression;            // N log2 K / description_bits
};

/// Probes at every layer, cross-validated, with what chance gives in the same place.
///
/// The same shuffles are used at all layers, so that the highest point of a null's sweep can be compared
/// (statistics::max_null_band). Where groups hold several classes labels are shuffled within each group; where every
/// group has one class, whole groups change labels. The control task gives every type a class at random (Hewitt &
/// Liang 2019): what a probe reaches on it, it can memorise. The description length is the online code of Voita & Titov
/// 2020 with blocks of .1, .2, .4, .8, 1.6, 3.2, 6.25, 12.5, 25, 50 and 100%; a prefix without some class codes at
/// log2 K. Intervals: exact and DeLong's for single texts, a bootstrap over groups where there are any.
///
/// values_NLD: float [N, L, D] on the CPU. All folds, values of C and shuffles of a layer are solved at once, the layers
/// in parallel; the search works in float32 (float64 of float64 values), the probe of all texts in float64.
/// Throws ShapeError for other shapes, std::invalid_argument for labels, folds and groups that do not go together,
/// activations that are not finite (naming text and layer), no C, or labels too few to shuffle: before anything is
/// fitted.
INTROSPECT_EXPORT std::vector<ProbeStudy> study_probes(const torch::Tensor& values_NLD,
                                                       const std::vector<std::string>& classes,
                                                       const ProbeLabels& labels,
                                                       const ProbeStudyOptions& options = {});

/// A probe on other texts: exact intervals, or a bootstrap over groups. Throws as Probe::scores, and
/// std::invalid_argument for labels that are not among the probe's classes or hold one class only.
INTROSPECT_EXPORT ProbeScores evaluate_probe(const Probe& probe, const torch::Tensor& activations_ND,
                                             const std::vector<int64_t>& labels,
                                             const std::vector<int64_t>& groups = {},
                                             double confidence = 0.95, int64_t resamples = 1000,
                                             uint64_t seed = 0);

}  // namespace introspect::analysis

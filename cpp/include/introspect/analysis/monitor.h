#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "introspect/export.h"
#include "introspect/statistics/bootstrap.h"
#include "introspect/statistics/detection.h"

namespace introspect::analysis {

/// The lowest threshold that at most this share of harmless texts reaches, from their scores. A text is flagged at or
/// above it.
///
/// The texts must not be those that the monitor is judged on. 1 % wants a hundred texts at least and a thousand to be
/// known well; of fewer than 1 / rate it lies above all of them.
/// Throws std::invalid_argument for no scores, scores that are not finite or a rate not from 0 to below 1.
INTROSPECT_EXPORT double threshold_at(std::span<const double> harmless, double false_positive_rate = 0.01);

/// How well scores with a threshold find what they are to find.
struct MonitorReport {
  double threshold = 0;
  statistics::Proportion recall, false_alarms;  // exact intervals
  statistics::Estimate auc;                     // whatever the threshold
};

/// Throws std::invalid_argument as statistics::auc does.
INTROSPECT_EXPORT MonitorReport monitor_report(std::span<const double> positives,
                                               std::span<const double> negatives, double threshold,
                                               double confidence = 0.95);

/// Expected calibration error: the mean distance of stated probability and observed share, over bins of equal width
/// weighted by their texts.
///
/// probabilities: of class 1; labels: 1 or 0. Throws std::invalid_argument for lists of other lengths, no texts,
/// probabilities or labels out of range, or no bins. Source: Naeini et al. 2015; Guo et al. 2017.
INTROSPECT_EXPORT double calibration_error(std::span<const double> probabilities,
                                           std::span<const int64_t> labels, int64_t bins = 10);

}  // namespace introspect::analysis

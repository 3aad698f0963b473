#pragma once

#include <cstdint>

#include "introspect/export.h"
#include "introspect/statistics/detection.h"
#include "introspect/statistics/null_band.h"

namespace introspect::statistics {

/// What reports tell about what was injected, from how often each pair came up.
struct Confusion {
  Proportion accuracy;     // the share of trials on the diagonal; columns after the rows are always wrong
  double chance = 0;       // 1 / rows
  double p_accuracy = 1;   // of so many right by chance
  double information = 0;  // bits between injected and reported, as the counts stand
  double information_corrected = 0;  // the same with Miller and Madow's correction; may be below 0
  double information_by_chance =
      0;                     // mean over permutations: the bias of `information` in a table of this size
  double p_information = 1;  // (1 + permutations with as much) / (1 + permutations)
};

/// Accuracy and mutual information of a confusion matrix: rows are what was injected, columns what was reported.
///
/// Row i means the same as column i; further columns are answers that name none of them. Counts are of trials.
/// Permutations shuffle the reports over the trials, so both margins stay; the same seed gives the same p.
/// Throws std::invalid_argument for fewer than two rows, fewer columns than rows, counts that are not whole numbers of
/// at least 0, no trials, or a negative number of permutations.
/// Source: Shannon 1948; Miller 1955 (correction by (bins - 1) / 2N of each entropy); permutation test as Phipson &
/// Smyth 2010; exact interval and test of accuracy: Clopper & Pearson 1934.
INTROSPECT_EXPORT Confusion confusion(const Matrix& counts, double confidence = 0.95,
                                      int64_t permutations = 10000, uint64_t seed = 0);

}  // namespace introspect::statistics

#pragma once

#include <cstdint>
#include <span>

#include "introspect/export.h"
#include "introspect/statistics/bootstrap.h"

namespace introspect::statistics {

/// Successes of independent trials.
struct Proportion {
  int64_t successes = 0, trials = 0;
  double value = 0;
  Interval interval;  // exact
};

/// The share of successes with its exact interval.
///
/// Throws std::invalid_argument unless 0 <= successes <= trials and trials > 0, or for a confidence not between 0 and 1.
/// Source: Clopper & Pearson 1934.
INTROSPECT_EXPORT Proportion proportion(int64_t successes, int64_t trials, double confidence = 0.95);

/// The chance of at least `successes` of `trials`, each with probability `chance`. Throws as proportion, and
/// std::invalid_argument for a chance not from 0 to 1.
INTROSPECT_EXPORT double binomial_p(int64_t successes, int64_t trials, double chance);

/// Yes and no with and without an injection.
struct Sensitivity {
  Proportion hits, false_alarms;
  double d_prime = 0;    // distance of the two distributions in their standard deviations
  double criterion = 0;  // 0 without bias, above 0 when "no" is preferred
};

/// d' and criterion of a yes-no task, with 0.5 added to each count and 1 to each number of trials, so that perfect rates
/// stay finite (log-linear correction).
///
/// Throws std::invalid_argument for negative counts or no trials of either kind.
/// Source: Green & Swets 1966; Hautus 1995 (correction).
INTROSPECT_EXPORT Sensitivity sensitivity(int64_t hits, int64_t misses, int64_t false_alarms,
                                          int64_t correct_rejections, double confidence = 0.95);

/// The chance that a positive scores above a negative, ties half, with a normal interval cut at 0 and 1.
///
/// Classes that do not overlap have a standard error of 0. Throws std::invalid_argument for fewer than two of either or
/// scores that are not finite.
/// Source: DeLong, DeLong & Clarke-Pearson 1988; computed through ranks as Sun & Xu 2014.
INTROSPECT_EXPORT Estimate auc(std::span<const double> positives, std::span<const double> negatives,
                               double confidence = 0.95);

/// A threshold on the score and what it lets pass.
struct MatchedRate {
  double threshold = 0;  // "yes" at or above it
  double hit_rate = 0, false_alarm_rate = 0;
};

/// False alarms at the highest threshold that gives at least this hit rate.
///
/// Throws std::invalid_argument for no positives or no negatives, scores that are not finite or a hit rate not above 0
/// and at most 1.
INTROSPECT_EXPORT MatchedRate false_alarms_at(std::span<const double> positives,
                                              std::span<const double> negatives, double hit_rate);

}  // namespace introspect::statistics

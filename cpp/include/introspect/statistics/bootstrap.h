#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "introspect/export.h"

namespace introspect::statistics {

/// Both ends included.
struct Interval {
  double low = 0, high = 0;
};

/// A number with its interval and its standard error.
struct Estimate {
  double value = 0;
  Interval interval;
  double standard_error = 0;
};

/// One way in which observations are alike: the question they ask, its paraphrase, the concept injected.
///
/// Levels that are a sample of a population (questions one might have asked) are resampled; what is fixed by design is
/// no factor.
struct Factor {
  std::string name;
  std::vector<std::string> levels;  // of each observation
  std::string within = {};  // a factor before it, in each of whose levels this one has levels of its own
};

enum class IntervalMethod {
  kPercentile,  // quantiles of the resamples
  kBca,         // bias-corrected and accelerated
};

struct BootstrapOptions {
  int64_t resamples = 10000;
  double confidence = 0.95;
  IntervalMethod method = IntervalMethod::kBca;
  uint64_t seed = 0;
};

/// A statistic of weighted observations; NaN where it is not defined for these weights.
using WeightedStatistic = std::function<double(std::span<const double> weights)>;

/// Bootstrap of a statistic over crossed and nested factors.
///
/// Each factor's levels are drawn with replacement, those of a nested one within each level of the factor around it, and
/// an observation's weight is the product of how often its levels were drawn. No factor: every observation is a level.
/// Draws for which the statistic is not defined are drawn again. The same seed gives the same bits.
///
/// Throws std::invalid_argument for fewer than two observations, factors of another length or within a factor that does not come
/// before them, no factor with two levels to
/// draw from, options out of range, or a design in which the statistic is hardly ever defined (with kBca: not defined
/// without one of the levels).
/// Source: Efron 1987 (BCa; several samples as Davison & Hinkley 1997, 5.3); Owen 2007, "The pigeonhole bootstrap"
/// (crossed factors); Owen & Eckles 2012 (product weights, nested factors).
INTROSPECT_EXPORT Estimate bootstrap(size_t n_observations, const std::vector<Factor>& factors,
                                     const WeightedStatistic& statistic,
                                     const BootstrapOptions& options = {});

/// `bootstrap` of the mean. Throws as it, and std::invalid_argument for values that are not finite.
INTROSPECT_EXPORT Estimate bootstrap_mean(std::span<const double> values,
                                          const std::vector<Factor>& factors = {},
                                          const BootstrapOptions& options = {});

/// `bootstrap` of the mean of the values of arm 1 less the mean of those of arm 0.
///
/// A factor each of whose levels lies in one arm (questions of either kind) is drawn within each arm; one with levels in
/// both (concepts) is drawn for both at once, so that what the arms share cancels.
/// Throws as bootstrap_mean, and std::invalid_argument unless every arm is 0 or 1 and both are there.
INTROSPECT_EXPORT Estimate bootstrap_difference(std::span<const double> values, std::span<const int64_t> arms,
                                                const std::vector<Factor>& factors = {},
                                                const BootstrapOptions& options = {});

/// The interval that bootstrap replicates of a statistic give: percentiles, or BCa with an acceleration.
///
/// Quantiles interpolate linearly between order statistics. Throws std::invalid_argument for no replicates or a confidence not
/// between 0 and 1.
INTROSPECT_EXPORT Interval bootstrap_interval(std::span<const double> replicates, double estimate,
                                              double confidence = 0.95,
                                              std::optional<double> acceleration = {});

}  // namespace introspect::statistics

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "introspect/export.h"
#include "introspect/statistics/bootstrap.h"

namespace introspect::statistics {

struct ClusteredMeanOptions {
  double confidence = 0.95;
  double null = 0;        // the mean that the p-values are against
  int64_t flips = 16384;  // of signs; all of them where there are no more
  uint64_t seed = 0;      // of the flips where there are more
};

/// The mean of a quantity over a sample of clusters (concepts, say), of which there may be few.
struct ClusteredMean {
  double value = 0;  // the mean of the clusters' means: each cluster counts alike
  double standard_error = 0;
  int64_t clusters = 0;
  Interval interval;                                   // Student's t, clusters - 1 degrees of freedom
  double p_greater = 1, p_less = 1;                    // of so high, so low a mean, by Student's t
  double p_greater_by_flips = 1, p_less_by_flips = 1;  // the same by flips of signs
};

/// The mean over clusters with its interval and one-sided p-values.
///
/// Student's t on the clusters' means needs no agreement of their variances or sizes and holds its level with few of
/// them. Flips of the signs of the clusters' distances from `null` are exact where these are symmetric, at any
/// number: c clusters cannot give a p below 2^-c. For a mean they are the wild cluster bootstrap-t with the null imposed.
/// Throws std::invalid_argument for lists of different lengths, values that are not finite, fewer than two clusters,
/// clusters whose means are all equal, or options out of range.
/// Source: Ibragimov & Müller 2010 (t of clusters' estimates); Canay, Romano & Shaikh 2017 (flips); Cameron, Gelbach &
/// Miller 2008 (wild cluster bootstrap); Phipson & Smyth 2010 (p-values of drawn flips).
INTROSPECT_EXPORT ClusteredMean clustered_mean(std::span<const double> values,
                                               const std::vector<std::string>& clusters,
                                               const ClusteredMeanOptions& options = {});

}  // namespace introspect::statistics

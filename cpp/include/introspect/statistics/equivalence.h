#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "introspect/export.h"
#include "introspect/statistics/bootstrap.h"

namespace introspect::statistics {

enum class ClusterErrors {
  kStudent,     // t of the clusters' means
  kBootstrapT,  // the same statistic, its distribution by drawing clusters with replacement
};

struct EquivalenceOptions {
  double level = 0.05;  // of either one-sided test, and so of the claim
  ClusterErrors errors = ClusterErrors::kStudent;
  int64_t resamples = 9999;  // of kBootstrapT
  uint64_t seed = 0;
};

/// Whether a mean is shown to lie between two bounds.
struct Equivalence {
  Estimate mean;                 // of the clusters' means, with the interval of confidence 1 - 2 level
  double p_low = 1, p_high = 1;  // of such a mean if the true one were the low, the high bound
  double p = 1;                  // the larger: at most `level`, equivalence is shown
  double smallest_bound = 0;     // equivalence is shown within plus and minus this, and within no less
};

/// Two one-sided tests over clusters: what a null result must pass before it is called one.
///
/// Throws std::invalid_argument as clustered_mean, and for bounds that are not finite or not in order.
/// Source: Schuirmann 1987; Lakens 2017; bootstrap-t as Efron & Tibshirani 1993, 12.5.
INTROSPECT_EXPORT Equivalence equivalence(std::span<const double> values,
                                          const std::vector<std::string>& clusters, Interval bounds,
                                          const EquivalenceOptions& options = {});

}  // namespace introspect::statistics

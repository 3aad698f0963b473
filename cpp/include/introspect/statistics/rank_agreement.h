#pragma once

#include <cstdint>
#include <span>

#include "introspect/export.h"

namespace introspect::statistics {

// How well one list orders what another lists: estimates against exact values, say.
// Each throws std::invalid_argument for lists of different lengths, fewer than two values, or values that are not finite.

/// Pearson's correlation of the ranks, ties sharing their mean; NaN where one list is constant.
/// Source: Spearman 1904.
INTROSPECT_EXPORT double spearman(std::span<const double> a, std::span<const double> b);

/// Concordant less discordant pairs, with ties left out of each list's scale (tau-b); NaN where one list is constant.
///
/// In O(n log n). Source: Kendall 1945; Knight 1966.
INTROSPECT_EXPORT double kendall_tau(std::span<const double> a, std::span<const double> b);

/// The share of the k highest of one list that are among the k highest of the other; of equal values the first is higher.
///
/// Throws also for k not from 1 to the length.
INTROSPECT_EXPORT double top_k_overlap(std::span<const double> a, std::span<const double> b, int64_t k);

}  // namespace introspect::statistics

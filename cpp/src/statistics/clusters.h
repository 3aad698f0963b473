#pragma once

#include <span>
#include <string>
#include <vector>

namespace introspect::statistics {

/// The mean of each cluster, in the order in which they first come.
///
/// Throws std::invalid_argument for lists of different lengths, values that are not finite, fewer than two clusters, or
/// means that are all equal.
std::vector<double> cluster_means(const char* who, std::span<const double> values,
                                  const std::vector<std::string>& clusters);

}  // namespace introspect::statistics

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "introspect/export.h"
#include "introspect/statistics/bootstrap.h"

namespace introspect::statistics {

/// Rows of numbers in one piece of memory, row after row.
struct Matrix {
  std::span<const double> values;
  size_t rows = 0, columns = 0;
  std::span<const double> row(size_t i) const { return values.subspan(i * columns, columns); }
};

/// A value among the same quantity of random vectors.
struct NullBand {
  double value = 0;
  size_t n = 0;                             // nulls
  double mean = 0, standard_deviation = 0;  // of the nulls; the latter NaN for one
  Interval band;                            // the nulls' quantiles on either side
  double z = 0;                             // (value - mean) / standard_deviation; NaN where that is NaN or 0
  size_t rank = 0;                          // 1 when the value is the highest; ties count against it
  double p = 0;  // (1 + #{null >= value}) / (1 + n): the chance of so high a value if it were one of them
  double p_two_sided = 0;  // twice the smaller of p and its mirror image, at most 1
};

/// Where a value lies among nulls. n nulls cannot give a p below 1 / (1 + n).
///
/// confidence: the share of the nulls between the ends of the band, by linear interpolation of the quantiles.
/// Throws std::invalid_argument for no nulls, values that are not finite or a confidence not between 0 and 1.
/// Source: Davison & Hinkley 1997, 4.2; Phipson & Smyth 2010 (p-values that are never zero).
INTROSPECT_EXPORT NullBand null_band(double value, std::span<const double> nulls, double confidence = 0.95);

/// The same at every point of a curve (layers, strengths). nulls: one row for each null.
///
/// Throws as null_band, and std::invalid_argument for rows of another length.
INTROSPECT_EXPORT std::vector<NullBand> null_bands(std::span<const double> values, const Matrix& nulls,
                                                   double confidence = 0.95);

/// A sweep against the highest point of each null's sweep: errors anywhere in the sweep are counted as one.
struct MaxNullBand {
  std::vector<double> p;  // of each point, adjusted for looking at all of them
  double p_any = 0;       // of the highest point
  double threshold = 0;  // what the highest point of a null's sweep exceeds with 1 - confidence, in its units
  std::vector<double> scores;        // of the curve's points, in these units
  double highest = 0;                // of them
  std::vector<double> null_highest;  // of each null's sweep
};

/// p-values of the points of a sweep from the nulls' maxima.
///
/// studentise: points are first measured from the mean and in the standard deviation of the curve and the nulls together
/// at this point, which leaves them exchangeable, so that points with noisy nulls do not hide the others; the threshold is
/// in these units. Points at which all are equal count as 0.
/// Throws as null_bands.
/// Source: Westfall & Young 1993, 2.3 (single-step maxT); Nichols & Holmes 2002.
INTROSPECT_EXPORT MaxNullBand max_null_band(std::span<const double> values, const Matrix& nulls,
                                            double confidence = 0.95, bool studentise = true);

}  // namespace introspect::statistics

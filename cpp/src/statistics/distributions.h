#pragma once

#include "introspect/export.h"

namespace introspect::statistics {

/// P(T <= t) for Student's t; degrees > 0 need not be whole. Exact to about 1e-14, in the tails relatively.
INTROSPECT_EXPORT double student_cdf(double t, double degrees);

/// The inverse of student_cdf, infinite at 0 and 1.
INTROSPECT_EXPORT double student_quantile(double p, double degrees);

/// P(X <= x) for chi squared; 0 below 0.
INTROSPECT_EXPORT double chi_squared_cdf(double x, double degrees);

/// The inverse of chi_squared_cdf, infinite at 1.
INTROSPECT_EXPORT double chi_squared_quantile(double p, double degrees);

}  // namespace introspect::statistics

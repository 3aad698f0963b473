#pragma once

#include <string>
#include <vector>

#include "introspect/export.h"

namespace introspect::ops {

/// The ways in which this processor multiplies bfloat16 matrices, the quickest first.
///
/// "tiles": AMX, 16 x 16 sums of 32 products at a time. "pairs": AVX512-BF16, two products for each of 16 sums.
/// "widened": in float32, by AVX-512, AVX2 or plain code, or by ATen for more than four rows where it is quicker.
/// The first two sum in float32, take numbers below 2^-126 for zero, as these instructions do, and give a row the same
/// bits whatever the number of rows. Their bits differ from one another: sums are made in another order.
INTROSPECT_EXPORT std::vector<std::string> bfloat16_products_here();

/// The way in use: the quickest, or the one that the environment variable INTROSPECT_BFLOAT16_PRODUCTS names.
///
/// Throws ConfigError if that variable names a way that this processor does not have.
INTROSPECT_EXPORT std::string bfloat16_products();

/// From now on, in every thread, this way: to compare ways, or to get another machine's bits. Returns the one before.
///
/// Throws ConfigError for a way that this processor does not have.
INTROSPECT_EXPORT std::string use_bfloat16_products(const std::string& way);

}  // namespace introspect::ops

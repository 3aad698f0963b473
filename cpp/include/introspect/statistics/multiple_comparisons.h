#pragma once

#include <span>
#include <vector>

#include "introspect/export.h"

namespace introspect::statistics {

enum class Correction {
  kBonferroni,          // chance of any error, whatever the dependence
  kHolm,                // the same and never weaker (Holm 1979)
  kBenjaminiHochberg,   // share of errors among findings, independent or positively dependent tests (1995)
  kBenjaminiYekutieli,  // the same under any dependence (2001)
};

/// p-values adjusted for their number: what is at most alpha may be called found at alpha.
///
/// Throws std::invalid_argument for no values or values not from 0 to 1.
INTROSPECT_EXPORT std::vector<double> adjusted_p(std::span<const double> p_values, Correction correction);

}  // namespace introspect::statistics

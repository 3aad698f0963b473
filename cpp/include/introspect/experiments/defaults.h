#pragma once

#include <cstdint>

namespace introspect::experiments {

// What an experiment does where it is not told otherwise, in C++, in Python and on the command line.

/// Strength of injections, in StrengthUnit::residual: small models answer in whole sentences up to here.
inline constexpr double kDefaultStrength = 0.1;
/// Random rotations of every vector. With ten, a concept is above all of them by chance once in eleven times.
inline constexpr int64_t kDefaultNulls = 10;
/// Blocks, as fractions of the depth: the article's 21 to 42 of 64.
inline constexpr double kDefaultFirst = 0.33, kDefaultLast = 0.66;

/// A setting leaves the format of the answer where what it leaves of the mass of the answers (yes and no; in a
/// localisation the answers) is less than this share of the unsteered run's ...
inline constexpr double kKeptMass = 0.5;
/// ... or less than this, and the unsteered run has more.
inline constexpr double kLeastMass = 0.1;

}  // namespace introspect::experiments

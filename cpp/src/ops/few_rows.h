#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/vector.h"

namespace introspect::ops {

/// Rows of x that one reading of the weights serves, each with sums of its own in registers; for more, products that pack x
/// are quicker.
constexpr int64_t kFewRows = 4;

/// f(std::integral_constant<int, N>) for N from 1 to kFewRows.
template <typename F>
INTROSPECT_INLINE void with_row_count(int64_t N, const F& f) {
  switch (N) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    default:
      return f(std::integral_constant<int, kFewRows>());
  }
}

}  // namespace introspect::ops

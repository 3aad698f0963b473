#pragma once

#include <c10/util/BFloat16.h>

#include "ops/exponential.h"

namespace introspect::ops {

/// silu(gate) rounded to bfloat16, times x, which the caller rounds: transformers' order. Both are bfloat16, widened.
template <typename V>
INTROSPECT_INLINE typename V::Floats silu_times(const typename V::Floats& gate, const typename V::Floats& x) {
  return V::template rounded_to<c10::BFloat16>(gate / (exponential<V>(-gate) + 1.0f)) * x;
}

}  // namespace introspect::ops

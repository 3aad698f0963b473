#pragma once

#include <cstring>

#include "ops/vector.h"

namespace introspect::ops {

/// e^x in float32, to about two units in the last place; below -87 e^-87, above 88.7 infinity, NaN stays NaN.
///
/// 2^n times the Taylor polynomial of degree 7 of e^r, |r| <= ln 2 / 2, whose next term is below 1e-8 of it. ln 2 is
/// taken from x in two parts (Cody & Waite 1980), the first of which times n is exact.
template <typename V>
INTROSPECT_INLINE typename V::Floats exponential(const typename V::Floats& x) {
  using Floats = typename V::Floats;
  const Floats low = Floats{} - 87.0f, high = Floats{} + 88.75f;
  Floats bounded = x < low ? low : x;
  bounded = bounded > high ? high : bounded;
  const Floats shift =
      Floats{} + 12582912.0f;  // 1.5 * 2^23: its last bit is 1, so n stands in the lower bits
  const Floats shifted = bounded * 1.44269504f + shift;
  const Floats n = shifted - shift;
  const Floats r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  typename V::Words bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

}  // namespace introspect::ops

#pragma once

#include <cstdint>
#include <cstring>

#include <c10/util/BFloat16.h>

#include "core/clones.h"

// The vectors never cross a call: everything that takes or returns one is inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace introspect::ops {

inline constexpr int64_t kLanes = 16;  // floats in one vector: one AVX-512 register, two of AVX2

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));
using Halves = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));
using Words = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));

[[gnu::always_inline]] inline Vector load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

/// bfloat16 is the upper half of a float32.
[[gnu::always_inline]] inline Vector load(const c10::BFloat16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  const Words w = __builtin_convertvector(h, Words) << 16;
  Vector v;
  std::memcpy(&v, &w, sizeof v);
  return v;
}

[[gnu::always_inline]] inline void store(float* p, const Vector& v) {
  std::memcpy(p, &v, sizeof v);
}

/// Rounded to the nearest, ties to even, as ATen does; NaN stays NaN.
[[gnu::always_inline]] inline Words bfloat16_bits(const Vector& v) {
  Words w;
  std::memcpy(&w, &v, sizeof w);
  const Words rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
  return v == v ? rounded : Words{} + 0x7fc0;
}

[[gnu::always_inline]] inline void store(c10::BFloat16* p, const Vector& v) {
  const Halves h = __builtin_convertvector(bfloat16_bits(v), Halves);
  std::memcpy(p, &h, sizeof h);
}

/// v in the precision of T.
template <typename T>
[[gnu::always_inline]] inline Vector rounded_to(const Vector& v) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return v;
  } else {
    const Words w = bfloat16_bits(v) << 16;
    Vector out;
    std::memcpy(&out, &w, sizeof out);
    return out;
  }
}

[[gnu::always_inline]] inline float sum(const Vector& v) {
  float total = 0;
  for (int64_t i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

}  // namespace introspect::ops

#pragma once

#include <cstdint>
#include <cstring>

#include <c10/util/BFloat16.h>

// The vectors never cross a call: everything that takes or returns one is inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

#define INTROSPECT_INLINE [[gnu::always_inline]] inline
#define INTROSPECT_INLINED \
  __attribute__((always_inline))  // of a lambda, where it stands after the parameters

// What is inlined into a function with one of these is compiled for these instructions.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define INTROSPECT_X86_KERNELS 1
#define INTROSPECT_AVX512 __attribute__((target("arch=x86-64-v4")))
#define INTROSPECT_AVX512_BFLOAT16 __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define INTROSPECT_AVX2 __attribute__((target("arch=x86-64-v3")))
#else
#define INTROSPECT_X86_KERNELS 0
#endif

namespace introspect::ops {

/// The vectors of L elements: one for each L, because GCC takes no template parameter for vector_size.
template <int L>
struct Registers;

template <>
struct Registers<16> {
  using Floats [[gnu::vector_size(64)]] = float;
  using Words [[gnu::vector_size(64)]] = uint32_t;
  using Halves [[gnu::vector_size(32)]] = uint16_t;
};

template <>
struct Registers<8> {
  using Floats [[gnu::vector_size(32)]] = float;
  using Words [[gnu::vector_size(32)]] = uint32_t;
  using Halves [[gnu::vector_size(16)]] = uint16_t;
};

template <>
struct Registers<4> {
  using Floats [[gnu::vector_size(16)]] = float;
  using Words [[gnu::vector_size(16)]] = uint32_t;
  using Halves [[gnu::vector_size(8)]] = uint16_t;
};

/// L floats at once: as many as one register holds, since GCC keeps wider vectors in memory.
template <int L>
struct Lanes {
  static constexpr int64_t width = L;

  using Floats = typename Registers<L>::Floats;
  using Words = typename Registers<L>::Words;
  using Halves = typename Registers<L>::Halves;

  INTROSPECT_INLINE static Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }

  INTROSPECT_INLINE static Words widened(const Halves& h) {
#if INTROSPECT_X86_KERNELS
    if constexpr (L == 16) {  // GCC 12 makes six instructions of this one
      Words w;
      __asm__("vpmovzxwd %1, %0" : "=v"(w) : "vm"(h));
      return w;
    }
#endif
    return __builtin_convertvector(h, Words);
  }

  /// bfloat16 is the upper half of a float32.
  INTROSPECT_INLINE static Floats load(const c10::BFloat16* p) {
    Halves h;
    std::memcpy(&h, p, sizeof h);
    const Words w = widened(h) << 16;
    Floats v;
    std::memcpy(&v, &w, sizeof v);
    return v;
  }

  INTROSPECT_INLINE static void store(float* p, const Floats& v) { std::memcpy(p, &v, sizeof v); }

  /// Rounded to the nearest, ties to even, as ATen does; NaN stays NaN.
  INTROSPECT_INLINE static Words bfloat16_bits(const Floats& v) {
    Words w;
    std::memcpy(&w, &v, sizeof w);
    const Words rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
    return v == v ? rounded : Words{} + 0x7fc0;
  }

  INTROSPECT_INLINE static void store(c10::BFloat16* p, const Floats& v) {
    const Halves h = __builtin_convertvector(bfloat16_bits(v), Halves);
    std::memcpy(p, &h, sizeof h);
  }

  /// v in the precision of T.
  template <typename T>
  INTROSPECT_INLINE static Floats rounded_to(const Floats& v) {
    if constexpr (sizeof(T) == sizeof(float)) {
      return v;
    } else {
      const Words w = bfloat16_bits(v) << 16;
      Floats out;
      std::memcpy(&out, &w, sizeof out);
      return out;
    }
  }

  /// Halves of the vector are added until four floats are left.
  INTROSPECT_INLINE static float sum(const Floats& v) {
    if constexpr (L > 4) {
      typename Registers<L / 2>::Floats low, high;
      std::memcpy(&low, &v, sizeof low);
      std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
      return Lanes<L / 2>::sum(low + high);
    } else {
      return (v[0] + v[2]) + (v[1] + v[3]);
    }
  }
};

#if INTROSPECT_X86_KERNELS

inline bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return has;
}

inline bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}

inline bool has_avx512_bfloat16() {
  static const bool has = has_avx512() && __builtin_cpu_supports("avx512bf16");
  return has;
}

/// Sixteen floats, rounded to bfloat16 by the processor's own instruction, which takes numbers below 2^-126 for zero.
struct RoundingLanes : Lanes<16> {
  INTROSPECT_INLINE static Halves halves(const Floats& v) {
    Halves h;
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(h) : "v"(v));
    return h;
  }

  using Lanes<16>::store;
  INTROSPECT_INLINE static void store(c10::BFloat16* p, const Floats& v) {
    const Halves h = halves(v);
    std::memcpy(p, &h, sizeof h);
  }

  template <typename T>
  INTROSPECT_INLINE static Floats rounded_to(const Floats& v) {
    if constexpr (sizeof(T) == sizeof(float)) {
      return v;
    } else {
      const Words w = widened(halves(v)) << 16;
      Floats out;
      std::memcpy(&out, &w, sizeof out);
      return out;
    }
  }
};

template <typename Body>
INTROSPECT_AVX512_BFLOAT16 void with_avx512_bfloat16(const Body& body) {
  body(RoundingLanes{});
}

template <typename Body>
INTROSPECT_AVX512 void with_avx512(const Body& body) {
  body(Lanes<16>{});
}

template <typename Body>
INTROSPECT_AVX2 void with_avx2(const Body& body) {
  body(Lanes<8>{});
}

#endif

/// body(Lanes<L>{}), compiled for the widest registers that this processor has.
///
/// body: [&](auto lanes) INTROSPECT_INLINED { ... }, of functions that are INTROSPECT_INLINE themselves.
template <typename Body>
void with_lanes(const Body& body) {
#if INTROSPECT_X86_KERNELS
  if (has_avx512()) return with_avx512(body);
  if (has_avx2()) return with_avx2(body);
#endif
  body(Lanes<4>{});
}

/// The same with the processor's own rounding to bfloat16 where it has that: for what writes many of them.
template <typename Body>
void with_rounding_lanes(const Body& body) {
#if INTROSPECT_X86_KERNELS
  if (has_avx512_bfloat16()) return with_avx512_bfloat16(body);
#endif
  with_lanes(body);
}

}  // namespace introspect::ops

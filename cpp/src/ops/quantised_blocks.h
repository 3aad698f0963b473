#pragma once

#include <cstdint>
#include <cstring>

#include "ops/vector.h"

#if INTROSPECT_X86_KERNELS
#include <immintrin.h>
#endif

// How kernels read ggml's blocks, whose layouts are those of core/dequantise.cpp.

namespace introspect::ops {

/// Asks the memory for `bytes` of the blocks that come 4 KiB after p.
///
/// Processors look ahead by themselves within a page only: rows of blocks come a third to two thirds faster with this
/// from memory and from the last cache, and as fast from nearer ones.
INTROSPECT_INLINE void fetch_ahead(const uint8_t* p, int64_t bytes) {
  constexpr int64_t kAhead = 4096, kLine = 64;
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(p + kAhead + i);
}

#if INTROSPECT_X86_KERNELS

#define INTROSPECT_KERNEL INTROSPECT_AVX512 inline __attribute__((always_inline))

INTROSPECT_KERNEL uint32_t word_at(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

/// first, first + 1 and so on.
INTROSPECT_KERNEL __m512i counting(int first) {
  return _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                          _mm512_set1_epi32(first));
}

/// The four bytes at the head of each of n blocks of `bytes`, of 16 at most; zero for those that are not there.
template <int bytes>
INTROSPECT_KERNEL __m512i words_of(const uint8_t* blocks, int64_t n) {
  const auto places = _mm512_mullo_epi32(counting(0), _mm512_set1_epi32(bytes));
  const auto there = static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1);
  return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, places, blocks, 1);
}

/// The scales of the eight groups of a Q4_K or Q5_K block, and then the eight numbers that are added to their values.
INTROSPECT_KERNEL __m512 group_scales(const uint8_t* b) {
  // A scale has six bits. Those of groups 0 to 3 are in the bytes of the first word; groups 4 to 7 have four in the low
  // halves of the third and two on top of the first. Offsets likewise: the second word, the high halves, its top.
  const auto words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 4));
  const auto low = _mm_srlv_epi32(_mm_shuffle_epi32(words, 0x98), _mm_setr_epi32(0, 0, 0, 4));
  const auto top = _mm_srli_epi32(_mm_shuffle_epi32(words, 0x50), 2);
  const auto low_bits = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f),
             top_bits = _mm_setr_epi32(0, 0x30303030, 0, 0x30303030);
  constexpr int kAndOr = 0xf8;  // a | (b & c)
  const auto packed = _mm_ternarylogic_epi32(_mm_and_si128(low, low_bits), top, top_bits, kAndOr);
  const auto d_dmin = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(word_at(b))));
  const auto factors =
      _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                            _mm512_castps128_ps512(_mm_xor_ps(d_dmin, _mm_setr_ps(0, -0.0f, 0, 0))));
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(packed)), factors);
}

#endif

}  // namespace introspect::ops

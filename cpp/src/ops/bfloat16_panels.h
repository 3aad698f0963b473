#pragma once

#include <cstdint>
#include <cstring>

#include <c10/util/BFloat16.h>

#include "ops/amx.h"
#include "ops/transpose.h"

#if INTROSPECT_X86_KERNELS

#define INTROSPECT_PANEL_INLINE INTROSPECT_AVX512_BFLOAT16 [[gnu::always_inline]] inline

namespace introspect::ops {

constexpr int64_t kPanelRows = 16;  // of x: the columns of a tile, the lanes of a register
constexpr int64_t kBlockRows = 32;  // of w: two tiles
constexpr int64_t kStep = 32;       // of k: a tile's 64 bytes
constexpr int64_t kSums = kBlockRows * kPanelRows;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// The first n of 32 numbers.
INTROSPECT_PANEL_INLINE __mmask32 first(int64_t n) {
  return n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1;
}

/// Rounded, and side by side as pairs: (even[i], odd[i]) for each of 16 lanes.
INTROSPECT_PANEL_INLINE __m512i as_pairs(__m512 even, __m512 odd) {
  const auto halves = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                       22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const auto both = _mm512_cvtne2ps_pbh(odd, even);
  __m512i words;
  std::memcpy(&words, &both, sizeof words);
  return _mm512_permutexvar_epi16(halves, words);
}

/// Up to 16 rows of K numbers, row(i) each, as a panel: pairs of each row, [steps * 16 pairs, 16 rows, 2], so that one
/// load gives a pair of every row. Missing rows and what K lacks to a whole step are zero.
template <typename Row>
INTROSPECT_PANEL_INLINE void pack_panel(const Row& row, int64_t n_rows, int64_t K, c10::BFloat16* panel) {
  for (int64_t k = 0; k < K; k += kStep) {
    __m512i r[16];
    for (int64_t i = 0; i < kPanelRows; ++i)
      r[i] = i < n_rows ? _mm512_maskz_loadu_epi16(first(K - k), row(i) + k) : _mm512_setzero_si512();
    transpose(r);
    for (int64_t i = 0; i < kPanelRows; ++i) _mm512_store_si512(panel + k * kPanelRows + i * kStep, r[i]);
  }
}

/// Sums [32 rows of w, 16 rows of x], plus the bias of each row of w (null: none), rounded: `n_columns` of them to each of
/// the first `n_rows` rows of `out`, `stride` apart.
INTROSPECT_PANEL_INLINE void write_rows(const float* sums, const float* bias, c10::BFloat16* out,
                                        int64_t stride, int64_t n_rows, int64_t n_columns) {
  __m512i r[16];
  for (int64_t i = 0; i < 16; ++i) {
    auto even = _mm512_load_ps(sums + 2 * i * kPanelRows);
    auto odd = _mm512_load_ps(sums + (2 * i + 1) * kPanelRows);
    if (bias) {
      even = _mm512_add_ps(even, _mm512_set1_ps(2 * i < n_columns ? bias[2 * i] : 0.0f));
      odd = _mm512_add_ps(odd, _mm512_set1_ps(2 * i + 1 < n_columns ? bias[2 * i + 1] : 0.0f));
    }
    r[i] = as_pairs(even, odd);
  }
  transpose(r);
  for (int64_t i = 0; i < n_rows; ++i) _mm512_mask_storeu_epi16(out + i * stride, first(n_columns), r[i]);
}

}  // namespace introspect::ops

#endif

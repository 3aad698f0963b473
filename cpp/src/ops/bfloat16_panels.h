#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include <c10/util/BFloat16.h>

#include "ops/amx.h"

#if INTROSPECT_X86_KERNELS

#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 finds it in its own header

#define INTROSPECT_PANEL_INLINE INTROSPECT_AVX512_BFLOAT16 [[gnu::always_inline]] inline

namespace introspect::ops {

constexpr int64_t kPanelRows = 16;  // of x: the columns of a tile, the lanes of a register
constexpr int64_t kBlockRows = 32;  // of w: two tiles
constexpr int64_t kStep = 32;       // of k: a tile's 64 bytes
constexpr int64_t kSums = kBlockRows * kPanelRows;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Numbers that begin at a cache line: a tile's load takes five times as long where its rows cross lines.
template <typename T>
class Lines {
 public:
  explicit Lines(int64_t n)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(n) * sizeof(T), kLine))) {}
  T* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kLine); }
  };
  std::unique_ptr<T, Free> data_;
};

/// 16 x 16 words with rows and columns exchanged.
INTROSPECT_PANEL_INLINE void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // r[4 j + i]: column i of each of four lanes, of the rows 4 j to 4 j + 3
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
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

/// Up to 16 rows of K numbers, `stride` apart, as a panel: pairs of each row, [steps * 16 pairs, 16 rows, 2], so that one
/// load gives a pair of every row. Missing rows and what K lacks to a whole step are zero.
INTROSPECT_PANEL_INLINE void pack_panel(const c10::BFloat16* rows, int64_t stride, int64_t n_rows, int64_t K,
                                        c10::BFloat16* panel) {
  for (int64_t k = 0; k < K; k += kStep) {
    __m512i r[16];
    for (int64_t i = 0; i < kPanelRows; ++i)
      r[i] =
          i < n_rows ? _mm512_maskz_loadu_epi16(first(K - k), rows + i * stride + k) : _mm512_setzero_si512();
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

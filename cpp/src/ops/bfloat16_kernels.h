#pragma once

#include <cstdint>
#include <cstring>

#include <c10/util/BFloat16.h>

#include "ops/bfloat16_panels.h"

#if INTROSPECT_X86_KERNELS

namespace introspect::ops {

/// 32 rows of w over some steps, which begin at cache lines, and one or two panels of x over the same.
struct BlockOperands {
  const char* w = nullptr;
  int64_t row_bytes = 0;
  int64_t step_bytes = 64;  // from the numbers of one step to those of the next
  const c10::BFloat16* panel = nullptr;
  int64_t panel_size = 0, steps = 0;
  int64_t rows = 0;            // of x in the last panel
  bool add = false;            // to the sums there
  const char* next = nullptr;  // rows that memory is asked for meanwhile; null: none
  int64_t n_next = 0;
};

/// Two products at a time for P panels and R rows of w from `row` on.
template <int P, int R>
INTROSPECT_PANEL_INLINE void pairs(const BlockOperands& o, int64_t row, float* sums) {
  __m512 acc[P][R];
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r)
      acc[p][r] = o.add ? _mm512_load_ps(sums + p * kSums + (row + r) * kPanelRows) : _mm512_setzero_ps();
  const char* w = o.w + row * o.row_bytes;
  for (int64_t k = 0; k < o.steps * kStep / 2; ++k) {
    __m512bh x[P];
    for (int p = 0; p < P; ++p) std::memcpy(&x[p], o.panel + p * o.panel_size + k * kStep, sizeof x[p]);
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, w + r * o.row_bytes + k / 16 * o.step_bytes + k % 16 * 4, sizeof pair);
      const auto word = _mm512_set1_epi32(pair);
      __m512bh weight;
      std::memcpy(&weight, &word, sizeof weight);
      for (int p = 0; p < P; ++p) acc[p][r] = _mm512_dpbf16_ps(acc[p][r], x[p], weight);
    }
  }
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r) _mm512_store_ps(sums + p * kSums + (row + r) * kPanelRows, acc[p][r]);
}

/// The same for R rows of one panel: a register holds a pair of each of 16 rows of w, so that its lanes are all of use.
template <int R>
INTROSPECT_PANEL_INLINE void pairs_of_few(const BlockOperands& o, int64_t row, float* sums) {
  __m512 acc[R];
  for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
  const char* w = o.w + row * o.row_bytes;
  for (int64_t s = 0; s < o.steps; ++s) {
    __m512i words[16];
    for (int i = 0; i < 16; ++i) words[i] = _mm512_loadu_si512(w + i * o.row_bytes + s * o.step_bytes);
    transpose(words);
    for (int k = 0; k < 16; ++k) {
      __m512bh weight;
      std::memcpy(&weight, &words[k], sizeof weight);
      for (int r = 0; r < R; ++r) {
        int32_t pair;
        std::memcpy(&pair, o.panel + (s * 16 + k) * kStep + 2 * r, sizeof pair);
        const auto word = _mm512_set1_epi32(pair);
        __m512bh x;
        std::memcpy(&x, &word, sizeof x);
        acc[r] = _mm512_dpbf16_ps(acc[r], x, weight);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < 16; ++i) sums[(row + i) * kPanelRows + r] = acc[r][i];
}

struct Nothing {
  INTROSPECT_INLINE void operator()() const {}
};

/// sums [P panels, 32 rows of w, 16 rows of x], float32, of the operands' products, added to what is there or not.
///
/// Called on a thread while one object of the class lives there. A sum's bits do not depend on what stands beside it.
/// `meanwhile` may be called at every step: products of tiles leave the vector units idle.
struct ByPairs {
  template <int P, typename F = Nothing>
  INTROSPECT_AVX512_BFLOAT16 static void multiply(const BlockOperands& o, float* sums,
                                                  F&& /*meanwhile*/ = {}) {
    if (P == 1 && o.rows <= 4 && !o.add) {
      for (int64_t row = 0; row < kBlockRows; row += kPanelRows)
        o.rows == 1 ? pairs_of_few<1>(o, row, sums) : pairs_of_few<4>(o, row, sums);
      return;
    }
    constexpr int R = 16 / P;  // sixteen sums hide the latency of one
    for (int64_t row = 0; row < kBlockRows; row += R) pairs<P, R>(o, row, sums);
  }
};

#if INTROSPECT_AMX_KERNELS

struct ByTiles {
  WholeTiles whole;

  /// 32 products at a time for two tiles of w and P panels: the sums are tiles 0 to 3, w's tiles 4 and 5, x's 6 and 7.
  template <int P, typename F = Nothing>
  INTROSPECT_AMX static void multiply(const BlockOperands& o, float* sums, F&& meanwhile = {}) {
    const char *w = o.w, *x = reinterpret_cast<const char*>(o.panel),
               *x1 = reinterpret_cast<const char*>(o.panel + o.panel_size), *next = o.next;
    const int64_t stride = o.row_bytes, below = kPanelRows * stride;
    __asm__ volatile("" ::: "memory");  // the compiler does not know that a tile's load reads memory
    if (o.add) {
      _tile_loadd(0, sums, 64);
      _tile_loadd(1, sums + kSums / 2, 64);
      if constexpr (P == 2) {
        _tile_loadd(2, sums + kSums, 64);
        _tile_loadd(3, sums + kSums + kSums / 2, 64);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      if constexpr (P == 2) {
        _tile_zero(2);
        _tile_zero(3);
      }
    }
    for (int64_t s = 0; s < o.steps; ++s, w += o.step_bytes, x += 1024, x1 += 1024) {
      _tile_loadd(4, w, stride);
      _tile_loadd(6, x, 64);
      _tile_loadd(5, w + below, stride);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (P == 2) _tile_loadd(7, x1, 64);
      _tile_dpbf16ps(1, 5, 6);
      if constexpr (P == 2) {
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      if (next) {
        for (int64_t r = 0; r < o.n_next; ++r) _mm_prefetch(next + r * stride, _MM_HINT_T1);
        next += 64;
      }
      meanwhile();
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + kSums / 2, 64);
    if constexpr (P == 2) {
      _tile_stored(2, sums + kSums, 64);
      _tile_stored(3, sums + kSums + kSums / 2, 64);
    }
    __asm__ volatile("" ::: "memory");
  }
};

#endif

}  // namespace introspect::ops

#endif

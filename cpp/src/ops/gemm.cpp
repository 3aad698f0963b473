#include "ops/gemm.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/parallel.h"
#include "ops/lines.h"
#include "ops/transpose.h"
#include "ops/vector.h"

namespace introspect::ops {

#if INTROSPECT_X86_KERNELS

namespace {

constexpr int64_t kPanelRows = 16;       // side by side: one AVX-512 register, or two of AVX2
constexpr int64_t kColumns = 96;         // of one task at most: a multiple of every tile's width
constexpr int64_t kDepth = 1024;         // of k at a time, so that rows of w and of x stay in L2
constexpr int64_t kPanels = 32;          // of one sweep over w: 512 rows, which stay in L3
constexpr int64_t kTaskFlops = 1 << 18;  // less is not worth a thread

template <typename T>
struct Operands {
  const float* panels;
  const float* w;
  const float* bias;
  T* out;
  int64_t rows, N, K;

  /// The same product from row m of x on, m a multiple of kPanelRows.
  INTROSPECT_INLINE Operands from(int64_t m) const {
    return {panels + m * K, w, bias, out + m * N, rows - m, N, K};
  }
};

/// Panels [first, last) of x [M, K]: 16 rows each, [K, 16], so that one load gives 16 rows' k-th element; missing rows
/// are zero.
template <typename T>
void pack_panels(const T* x, float* panels, int64_t M, int64_t K, int64_t first, int64_t last) {
  for (int64_t p = first; p < last; ++p) {
    float* panel = panels + p * K * kPanelRows;
    const int64_t rows = std::min(kPanelRows, M - p * kPanelRows);
    if (rows < kPanelRows) std::memset(panel, 0, static_cast<size_t>(K * kPanelRows) * sizeof(float));
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = x + (p * kPanelRows + r) * K;
      for (int64_t k = 0; k < K; ++k) panel[k * kPanelRows + r] = static_cast<float>(row[k]);
    }
  }
}

/// The first n of 16 numbers.
INTROSPECT_AVX512 INTROSPECT_INLINE __mmask16 first_of(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1);
}

INTROSPECT_AVX512 void pack_panels_avx512(const float* x, float* panels, int64_t M, int64_t K, int64_t first,
                                          int64_t last) {
  for (int64_t p = first; p < last; ++p) {
    float* panel = panels + p * K * kPanelRows;
    const float* rows = x + p * kPanelRows * K;
    const int64_t n_rows = std::min(kPanelRows, M - p * kPanelRows);
    for (int64_t k = 0; k < K; k += 16) {
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i)
        r[i] =
            i < n_rows ? _mm512_maskz_loadu_epi32(first_of(K - k), rows + i * K + k) : _mm512_setzero_si512();
      transpose(r);
      for (int64_t i = 0; i < std::min<int64_t>(16, K - k); ++i)
        _mm512_store_si512(panel + (k + i) * kPanelRows, r[i]);
    }
  }
}

template <typename T>
void pack(const T* x, float* panels, int64_t M, int64_t K) {
  parallel_for(0, (M + kPanelRows - 1) / kPanelRows, 1, [&](int64_t first, int64_t last) {
    if constexpr (std::is_same_v<T, float>)
      if (has_avx512()) return pack_panels_avx512(x, panels, M, K, first, last);
    pack_panels(x, panels, M, K, first, last);
  });
}

/// A part of the sum over k, and where sums of other parts stand meanwhile: a group, [columns, rows of the group].
struct Part {
  int64_t begin, end;
  float* sums;
};

/// P vectors of rows times R rows of w from n on, the products kept in P * R registers over all of the part.
template <typename V, int P, int R, typename T>
INTROSPECT_INLINE void tile(const Operands<T>& o, int64_t n, const Part& part) {
  constexpr int64_t lanes = V::width;
  typename V::Floats acc[P][R] = {};
  float* sums = part.sums + n * P * lanes;
  if (part.begin > 0)
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) acc[p][r] = V::load(sums + (r * P + p) * lanes);
  const float* w = o.w + n * o.K;
  for (int64_t k = part.begin; k < part.end; ++k) {
    typename V::Floats x[P];
    for (int p = 0; p < P; ++p) {
      const int64_t row = p * lanes, panel = row / kPanelRows;
      x[p] = V::load(o.panels + (panel * o.K + k) * kPanelRows + row % kPanelRows);
    }
    for (int r = 0; r < R; ++r) {
      const float weight = w[r * o.K + k];
      for (int p = 0; p < P; ++p) acc[p][r] += x[p] * weight;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) V::store(sums + (r * P + p) * lanes, acc[p][r]);
}

/// Sums of `columns` columns and `group` rows, plus the bias, to the rows of the output that there are.
template <typename T>
void write_sums(const Operands<T>& o, const float* sums, int64_t group, int64_t columns) {
  for (int64_t m = 0; m < std::min(group, o.rows); ++m)
    for (int64_t n = 0; n < columns; ++n)
      o.out[m * o.N + n] = static_cast<T>(sums[n * group + m] + (o.bias ? o.bias[n] : 0.0f));
}

INTROSPECT_AVX512 void write_sums_avx512(const Operands<float>& o, const float* sums, int64_t group,
                                         int64_t columns) {
  for (int64_t n = 0; n < columns; n += 16)
    for (int64_t m = 0; m < std::min(group, o.rows); m += 16) {
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t column = std::min(n + i, columns - 1);
        const auto bias = _mm512_set1_ps(o.bias ? o.bias[column] : 0.0f);
        r[i] = _mm512_castps_si512(_mm512_add_ps(_mm512_load_ps(sums + column * group + m), bias));
      }
      transpose(r);
      for (int64_t i = 0; i < std::min<int64_t>(16, o.rows - m); ++i)
        _mm512_mask_storeu_epi32(o.out + (m + i) * o.N + n, first_of(columns - n), r[i]);
    }
}

/// The columns [0, n) of the output for P vectors of rows, R rows of w at a time.
template <typename V, int P, int R, typename T>
INTROSPECT_INLINE void columns(const Operands<T>& o, int64_t n, const Part& part) {
  int64_t c = 0;
  for (; c + R <= n; c += R) tile<V, P, R>(o, c, part);
  for (; c < n; ++c) tile<V, P, 1>(o, c, part);
  if (part.end < o.K) return;
  if constexpr (V::width == 16 && std::is_same_v<T, float>)
    write_sums_avx512(o, part.sums, P * V::width, n);
  else
    write_sums(o, part.sums, P * V::width, n);
}

/// n columns of every row, with space for their sums; 32 registers hold 24 products, the operands and some to spare.
template <typename T>
INTROSPECT_AVX512 void block_avx512(const Operands<T>& o, int64_t n, float* sums) {
  for (int64_t k = 0; k < o.K; k += kDepth) {
    for (int64_t m = 0; m < o.rows;) {
      const auto group = o.from(m);
      const Part part{k, std::min(o.K, k + kDepth), sums + (o.K > kDepth ? m * n : 0)};
      if (group.rows > 3 * kPanelRows) {
        columns<Lanes<16>, 4, 6>(group, n, part);
        m += 4 * kPanelRows;
      } else if (group.rows > kPanelRows) {
        columns<Lanes<16>, 2, 12>(group, n, part);
        m += 2 * kPanelRows;
      } else {
        columns<Lanes<16>, 1, 12>(group, n, part);
        m += kPanelRows;
      }
    }
  }
}

/// The same with 16 registers: 12 products, two vectors of x and a weight.
template <typename T>
INTROSPECT_AVX2 void block_avx2(const Operands<T>& o, int64_t n, float* sums) {
  for (int64_t k = 0; k < o.K; k += kDepth)
    for (int64_t m = 0; m < o.rows; m += kPanelRows)
      columns<Lanes<8>, 2, 6>(o.from(m), n,
                              Part{k, std::min(o.K, k + kDepth), sums + (o.K > kDepth ? m * n : 0)});
}

/// Rows [first, first + n) of w [N, K] in float32: where they are, or in `buffer`.
const float* rows_of(const float* w, std::vector<float>&, int64_t first, int64_t, int64_t K) {
  return w + first * K;
}
const float* rows_of(const c10::BFloat16* w, std::vector<float>& buffer, int64_t first, int64_t n,
                     int64_t K) {
  buffer.assign(w + first * K, w + (first + n) * K);
  return buffer.data();
}
const float* rows_of(const UnpackRows& w, std::vector<float>& buffer, int64_t first, int64_t n, int64_t K) {
  buffer.resize(static_cast<size_t>(n * K));
  w(first, n, buffer.data());
  return buffer.data();
}

/// At most kPanels panels times all of w.
template <typename T, typename W>
void sweep(const Operands<T>& o, const W& w) {
  const auto block = has_avx512() ? block_avx512<T> : block_avx2<T>;
  // Enough tasks for every thread to have as much to do.
  int64_t width = kColumns;
  while (width > kColumns / 4 && o.N < 6 * width * at::get_num_threads()) width /= 2;
  const int64_t blocks = (o.N + width - 1) / width;
  const int64_t grain = std::max<int64_t>(1, kTaskFlops / (2 * width * o.K * o.rows));
  parallel_for(0, blocks, grain, [&](int64_t first_block, int64_t last_block) {
    std::vector<float> buffer;
    const int64_t groups = o.K > kDepth ? (o.rows + 4 * kPanelRows - 1) / (4 * kPanelRows) : 1;
    const Lines<float> sums(groups * 4 * kPanelRows * width);
    for (int64_t b = first_block; b < last_block; ++b) {
      const int64_t first = b * width, last = std::min(o.N, first + width);
      auto part = o;
      part.w = rows_of(w, buffer, first, last - first, o.K);
      part.out += first;
      if (part.bias) part.bias += first;
      block(part, last - first, sums.get());
    }
  });
}

template <typename T, typename W>
void multiply(const T* x, const W& w, const float* bias, T* out, int64_t M, int64_t N, int64_t K) {
  constexpr int64_t kRows = kPanels * kPanelRows;
  const int64_t padded = (std::min(M, kRows) + kPanelRows - 1) / kPanelRows * kPanelRows;
  const Lines<float> panels(padded * K);
  for (int64_t m = 0; m < M; m += kRows) {
    const int64_t rows = std::min(kRows, M - m);
    pack(x + m * K, panels.get(), rows, K);
    sweep(Operands<T>{panels.get(), nullptr, bias, out + m * N, rows, N, K}, w);
  }
}

}  // namespace

bool has_gemm_rows() {
  return has_avx512() || has_avx2();
}

bool has_gemm_rows_bfloat16() {
  return has_gemm_rows() && !has_avx512();
}

void gemm_rows(const float* x, const float* w, const float* bias, float* out, int64_t M, int64_t N,
               int64_t K) {
  multiply(x, w, bias, out, M, N, K);
}

void gemm_rows(const float* x, const c10::BFloat16* w, const float* bias, float* out, int64_t M, int64_t N,
               int64_t K) {
  multiply(x, w, bias, out, M, N, K);
}

void gemm_rows(const float* x, const UnpackRows& w, const float* bias, float* out, int64_t M, int64_t N,
               int64_t K) {
  multiply(x, w, bias, out, M, N, K);
}

void gemm_rows(const c10::BFloat16* x, const c10::BFloat16* w, const float* bias, c10::BFloat16* out,
               int64_t M, int64_t N, int64_t K) {
  multiply(x, w, bias, out, M, N, K);
}

#else

bool has_gemm_rows() {
  return false;
}

bool has_gemm_rows_bfloat16() {
  return false;
}

void gemm_rows(const float*, const float*, const float*, float*, int64_t, int64_t, int64_t) {}

void gemm_rows(const float*, const c10::BFloat16*, const float*, float*, int64_t, int64_t, int64_t) {}

void gemm_rows(const float*, const UnpackRows&, const float*, float*, int64_t, int64_t, int64_t) {}

void gemm_rows(const c10::BFloat16*, const c10::BFloat16*, const float*, c10::BFloat16*, int64_t, int64_t,
               int64_t) {}

#endif

}  // namespace introspect::ops

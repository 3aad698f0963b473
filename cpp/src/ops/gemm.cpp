#include "ops/gemm.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "core/parallel.h"
#include "ops/vector.h"

namespace introspect::ops {

#if INTROSPECT_X86_KERNELS

namespace {

constexpr int64_t kPanelRows = 16;  // side by side: one AVX-512 register, or two of AVX2
constexpr int64_t kColumns = 24;  // of one task: a multiple of every tile's width, whose rows of w stay in L2
constexpr int64_t kPanels = 32;   // of one sweep over w: 512 rows, which stay in L3
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

/// x [M, K] as panels of 16 rows, each [K, 16], so that one load gives 16 rows' k-th element; missing rows are zero.
template <typename T>
void pack(const T* x, float* panels, int64_t M, int64_t K) {
  const int64_t n_panels = (M + kPanelRows - 1) / kPanelRows;
  parallel_for(0, n_panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      float* panel = panels + p * K * kPanelRows;
      const int64_t rows = std::min(kPanelRows, M - p * kPanelRows);
      if (rows < kPanelRows) std::memset(panel, 0, static_cast<size_t>(K * kPanelRows) * sizeof(float));
      for (int64_t r = 0; r < rows; ++r) {
        const T* row = x + (p * kPanelRows + r) * K;
        for (int64_t k = 0; k < K; ++k) panel[k * kPanelRows + r] = static_cast<float>(row[k]);
      }
    }
  });
}

/// P vectors of rows times R rows of w, the products kept in P * R registers over all of K.
template <typename V, int P, int R, typename T>
INTROSPECT_INLINE void tile(const Operands<T>& o, int64_t n) {
  constexpr int64_t lanes = V::width;
  typename V::Floats acc[P][R] = {};
  const float* w = o.w + n * o.K;
  for (int64_t k = 0; k < o.K; ++k) {
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
  for (int p = 0; p < P; ++p)
    for (int64_t lane = 0; lane < std::min(lanes, o.rows - p * lanes); ++lane)
      for (int r = 0; r < R; ++r)
        o.out[(p * lanes + lane) * o.N + n + r] =
            static_cast<T>(acc[p][r][lane] + (o.bias ? o.bias[n + r] : 0.0f));
}

/// The columns [first, last) of the output for P vectors of rows, R rows of w at a time.
template <typename V, int P, int R, typename T>
INTROSPECT_INLINE void columns(const Operands<T>& o, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + R <= last; n += R) tile<V, P, R>(o, n);
  for (; n < last; ++n) tile<V, P, 1>(o, n);
}

/// The columns [first, last) of every row; 32 registers hold 24 products, the operands and some to spare.
template <typename T>
INTROSPECT_AVX512 void block_avx512(const Operands<T>& o, int64_t first, int64_t last) {
  for (int64_t m = 0; m < o.rows;) {
    const auto group = o.from(m);
    if (group.rows > 3 * kPanelRows) {
      columns<Lanes<16>, 4, 6>(group, first, last);
      m += 4 * kPanelRows;
    } else if (group.rows > kPanelRows) {
      columns<Lanes<16>, 2, 12>(group, first, last);
      m += 2 * kPanelRows;
    } else {
      columns<Lanes<16>, 1, 12>(group, first, last);
      m += kPanelRows;
    }
  }
}

/// The same with 16 registers: 12 products, two vectors of x and a weight.
template <typename T>
INTROSPECT_AVX2 void block_avx2(const Operands<T>& o, int64_t first, int64_t last) {
  for (int64_t m = 0; m < o.rows; m += kPanelRows) columns<Lanes<8>, 2, 6>(o.from(m), first, last);
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
  const int64_t blocks = (o.N + kColumns - 1) / kColumns;
  const int64_t grain = std::max<int64_t>(1, kTaskFlops / (2 * kColumns * o.K * o.rows));
  parallel_for(0, blocks, grain, [&](int64_t first_block, int64_t last_block) {
    std::vector<float> buffer;
    for (int64_t b = first_block; b < last_block; ++b) {
      const int64_t first = b * kColumns, last = std::min(o.N, first + kColumns);
      auto part = o;
      part.w = rows_of(w, buffer, first, last - first, o.K);
      part.out += first;
      if (part.bias) part.bias += first;
      block(part, 0, last - first);
    }
  });
}

template <typename T, typename W>
void multiply(const T* x, const W& w, const float* bias, T* out, int64_t M, int64_t N, int64_t K) {
  constexpr int64_t kRows = kPanels * kPanelRows;
  const int64_t padded = (std::min(M, kRows) + kPanelRows - 1) / kPanelRows * kPanelRows;
  const auto panels = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(padded * K));
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

#include "ops/gemm.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "core/parallel.h"
#include "ops/vector.h"

namespace introspect::ops {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

namespace {

// A vector holds one element of each of 16 rows of x, and is one AVX-512 register.
#define INTROSPECT_AVX512 __attribute__((target("arch=x86-64-v4")))

/// x [M, K] as panels of 16 rows, each [K, 16], so that one load gives 16 rows' k-th element; missing rows are zero.
INTROSPECT_AVX512 void pack(const float* x, float* panels, int64_t M, int64_t K) {
  const int64_t n_panels = (M + kLanes - 1) / kLanes;
  parallel_for(0, n_panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      float* panel = panels + p * K * kLanes;
      const int64_t rows = std::min(kLanes, M - p * kLanes);
      if (rows < kLanes) std::memset(panel, 0, static_cast<size_t>(K * kLanes) * sizeof(float));
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = x + (p * kLanes + r) * K;
        for (int64_t k = 0; k < K; ++k) panel[k * kLanes + r] = row[k];
      }
    }
  });
}

struct Operands {
  const float* panels;
  const float* w;
  const float* bias;
  float* out;
  int64_t rows, N, K;
};

/// P panels times R rows of w, the products kept in P * R registers over all of K.
template <int P, int R>
INTROSPECT_AVX512 inline void tile(const Operands& o, int64_t n) {
  Vector acc[P][R] = {};
  const float* w = o.w + n * o.K;
  for (int64_t k = 0; k < o.K; ++k) {
    Vector x[P];
    for (int p = 0; p < P; ++p) std::memcpy(&x[p], o.panels + (p * o.K + k) * kLanes, sizeof(Vector));
    for (int r = 0; r < R; ++r) {
      const float weight = w[r * o.K + k];
      for (int p = 0; p < P; ++p) acc[p][r] += x[p] * weight;
    }
  }
  for (int p = 0; p < P; ++p)
    for (int64_t lane = 0; lane < std::min(kLanes, o.rows - p * kLanes); ++lane)
      for (int r = 0; r < R; ++r)
        o.out[(p * kLanes + lane) * o.N + n + r] = acc[p][r][lane] + (o.bias ? o.bias[n + r] : 0.0f);
}

/// The columns [first, last) of the output, R rows of w at a time.
template <int P, int R>
INTROSPECT_AVX512 void columns(const Operands& o, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + R <= last; n += R) tile<P, R>(o, n);
  for (; n < last; ++n) tile<P, 1>(o, n);
}

constexpr int64_t kColumns = 24;  // of one task: a multiple of every tile's width, whose rows of w stay in L2
constexpr int64_t kPanels = 32;   // of one sweep over w: 512 rows, which stay in L3
constexpr int64_t kTaskFlops = 1 << 18;  // less is not worth a thread

/// At most kPanels panels times all of w.
void sweep(const Operands& o) {
  const int64_t n_panels = (o.rows + kLanes - 1) / kLanes, blocks = (o.N + kColumns - 1) / kColumns;
  const int64_t grain = std::max<int64_t>(1, kTaskFlops / (2 * kColumns * o.K * o.rows));
  parallel_for(0, blocks, grain, [&](int64_t first_block, int64_t last_block) {
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t first = block * kColumns, last = std::min(o.N, first + kColumns);
      for (int64_t p = 0; p < n_panels;) {
        Operands group = o;
        group.panels += p * o.K * kLanes;
        group.out += p * kLanes * o.N;
        group.rows -= p * kLanes;
        if (n_panels - p >= 4) {
          columns<4, 6>(group, first, last);
          p += 4;
        } else if (n_panels - p >= 2) {
          columns<2, 12>(group, first, last);
          p += 2;
        } else {
          columns<1, 12>(group, first, last);
          p += 1;
        }
      }
    }
  });
}

}  // namespace

bool has_gemm_rows() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return has;
}

void gemm_rows(const float* x, const float* w, const float* bias, float* out, int64_t M, int64_t N,
               int64_t K) {
  constexpr int64_t kRows = kPanels * kLanes;
  const int64_t padded = (std::min(M, kRows) + kLanes - 1) / kLanes * kLanes;
  const auto panels = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(padded * K));
  for (int64_t m = 0; m < M; m += kRows) {
    const int64_t rows = std::min(kRows, M - m);
    pack(x + m * K, panels.get(), rows, K);
    sweep({panels.get(), w, bias, out + m * N, rows, N, K});
  }
}

#else

bool has_gemm_rows() {
  return false;
}

void gemm_rows(const float*, const float*, const float*, float*, int64_t, int64_t, int64_t) {}

#endif

}  // namespace introspect::ops

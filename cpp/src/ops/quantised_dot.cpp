#include "ops/quantised_dot.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "ops/quantised_blocks.h"

namespace introspect::ops {

namespace {

using DotRows = void (*)(const float* x, int64_t N, const uint8_t* rows, int64_t n_rows, int64_t K,
                         float* out, int64_t stride);

constexpr int64_t kUnpacked =
    1024;  // values between two unpackings: a whole number of every encoding's blocks

/// acc += x[n, :] . w over D values, D a multiple of the lanes but for the last part of a row.
template <typename V, int N>
INTROSPECT_INLINE void add_products(const float* x, int64_t K, const float* w, int64_t D,
                                    typename V::Floats (&acc)[N][2], float (&rest)[N]) {
  int64_t d = 0;
  for (; d + 2 * V::width <= D; d += 2 * V::width)
    for (int u = 0; u < 2; ++u) {
      const auto weight = V::load(w + d + u * V::width);
      for (int n = 0; n < N; ++n) acc[n][u] += V::load(x + n * K + d + u * V::width) * weight;
    }
  for (; d < D; ++d)
    for (int n = 0; n < N; ++n) rest[n] += x[n * K + d] * w[d];
}

template <typename V, int N>
INTROSPECT_INLINE void unpacked_rows(const Quantisation& q, const float* x, const uint8_t* rows,
                                     int64_t n_rows, int64_t K, float* out, int64_t stride) {
  const auto [elements, bytes] = q.layout;
  float w[kUnpacked];
  for (int64_t r = 0; r < n_rows; ++r) {
    const uint8_t* row = rows + r * (K / elements * bytes);
    typename V::Floats acc[N][2] = {};
    float rest[N] = {};
    for (int64_t first = 0; first < K; first += kUnpacked) {
      const int64_t D = std::min(kUnpacked, K - first);
      fetch_ahead(row + first / elements * bytes, D / elements * bytes);
      q.dequantise(row + first / elements * bytes, D / elements, w);
      add_products<V, N>(x + first, K, w, D, acc, rest);
    }
    for (int n = 0; n < N; ++n) out[n * stride + r] = V::sum(acc[n][0] + acc[n][1]) + rest[n];
  }
}

#if INTROSPECT_X86_KERNELS

// Each encoding's kernel adds x times the blocks of a row, 16 values at a time. A code of four or five bits is an index
// into a table of the values of its group, so a value costs one permutation.

constexpr int64_t kBlock = 32, kSuperBlock = 256, kBlocks = 64;  // blocks whose scales are widened together

INTROSPECT_KERNEL __m512 iota() {
  return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

INTROSPECT_KERNEL __m512i bytes_at(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

/// Keeps scales in memory: a broadcast from there costs a load, one from a register a permutation.
INTROSPECT_KERNEL void keep_in_memory() {
  asm volatile("" ::: "memory");
}

INTROSPECT_KERNEL __m512 at(const float* p) {
  return _mm512_set1_ps(*p);
}

/// The sums of N rows of x, in four parts each so that additions do not wait for one another.
template <int N>
struct Sums {
  __m512 acc[N][4];

  INTROSPECT_KERNEL Sums() {
    for (auto& row : acc)
      for (auto& part : row) part = _mm512_setzero_ps();
  }

  template <int part>
  INTROSPECT_KERNEL void add(const float* x, int64_t K, __m512 w) {
    for (int n = 0; n < N; ++n) acc[n][part] = _mm512_fmadd_ps(_mm512_loadu_ps(x + n * K), w, acc[n][part]);
  }

  INTROSPECT_KERNEL void store(float* out, int64_t stride) const {
    for (int n = 0; n < N; ++n)
      out[n * stride] = _mm512_reduce_add_ps(
          _mm512_add_ps(_mm512_add_ps(acc[n][0], acc[n][1]), _mm512_add_ps(acc[n][2], acc[n][3])));
  }
};

/// Sixteen values as bfloat16 numbers; NaN stays NaN.
INTROSPECT_KERNEL __m256i rounded(__m512 w) {
  const auto bits = _mm512_castps_si512(w);
  const auto odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const auto up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const auto is_nan = _mm512_cmp_ps_mask(w, w, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), is_nan, _mm512_set1_epi32(0x7fc0)));
}

/// Takes what Sums takes and writes the values themselves, rounded to bfloat16: x stands for a place in the row.
struct Rounded {
  const float* row;
  uint16_t* out;

  template <int part>
  INTROSPECT_KERNEL void add(const float* x, int64_t, __m512 w) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (x - row)), rounded(w));
  }
};

/// The float16 numbers at the head of n <= kBlocks blocks of 32: scales and, where there are two, offsets.
template <int bytes, bool has_offset>
INTROSPECT_KERNEL void widen_heads(const uint8_t* blocks, int64_t n, float* scales, float* offsets) {
  for (int64_t b = 0; b < n; b += 16) {
    const auto heads = words_of<bytes>(blocks + b * bytes, n - b);
    _mm512_storeu_ps(scales + b, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(heads)));
    if (has_offset)
      _mm512_storeu_ps(offsets + b, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(heads, 16))));
  }
}

/// Calls block(block, x there, scale, offset, sums) for the blocks of 32 of a row, in pairs of different `parity`.
template <int bytes, bool has_offset, typename Block, typename Sink>
INTROSPECT_KERNEL void for_blocks(const float* x, const uint8_t* row, int64_t K, Sink& sums) {
  float scales[kBlocks], offsets[kBlocks];
  const int64_t n_blocks = K / kBlock;
  for (int64_t first = 0; first < n_blocks; first += kBlocks) {
    const int64_t n = std::min(kBlocks, n_blocks - first);
    const uint8_t* blocks = row + first * bytes;
    widen_heads<bytes, has_offset>(blocks, n, scales, offsets);
    const float* xs = x + first * kBlock;
    int64_t b = 0;
    for (; b + 2 <= n; b += 2) {
      fetch_ahead(blocks + b * bytes, 2 * bytes);
      Block::template add<0>(blocks + b * bytes, xs + b * kBlock, K, scales + b, offsets + b, sums);
      Block::template add<2>(blocks + (b + 1) * bytes, xs + (b + 1) * kBlock, K, scales + b + 1,
                             offsets + b + 1, sums);
    }
    if (b < n) Block::template add<0>(blocks + b * bytes, xs + b * kBlock, K, scales + b, offsets + b, sums);
  }
}

/// An encoding of blocks of 32, `size` bytes each, whose `add` takes one.
template <typename Block, int size, bool has_offset>
struct SmallBlocks {
  template <typename Sink>
  INTROSPECT_KERNEL static void row(const float* x, const uint8_t* row, int64_t K, Sink& sums) {
    for_blocks<size, has_offset, Block>(x, row, K, sums);
  }
  static constexpr int64_t bytes = size, elements = kBlock;
};

/// 16 bytes of codes of four bits: the low halves' values and the high halves', by the group's table.
template <int part, typename Sink>
INTROSPECT_KERNEL void add_nibbles(const uint8_t* codes, const float* x, int64_t K, __m512 table,
                                   Sink& sums) {
  const auto q = bytes_at(codes);
  sums.template add<part>(x, K, _mm512_permutexvar_ps(q, table));
  sums.template add<part + 1>(x + 16, K, _mm512_permutexvar_ps(_mm512_srli_epi32(q, 4), table));
}

/// The same with fifth bits, the first value's the lowest of `bits`.
template <int part, typename Sink>
INTROSPECT_KERNEL void add_fives(const uint8_t* codes, uint32_t bits, const float* x, int64_t K, __m512 low,
                                 __m512 high, Sink& sums) {
  const auto q = bytes_at(codes), fifth = _mm512_set1_epi32(16);
  const auto all = _mm512_set1_epi32(static_cast<int>(bits));
  // Bit j of the first half goes to place 4 of lane j: by j - 4 to the right.
  const auto first = _mm512_rolv_epi32(all, _mm512_sub_epi32(_mm512_set1_epi32(36), counting(0)));
  const auto second = _mm512_srlv_epi32(all, counting(12));
  constexpr int kSelect = 0xca;  // a ? b : c, bit by bit
  const auto index = _mm512_ternarylogic_epi32(fifth, first, q, kSelect);
  const auto index_high = _mm512_ternarylogic_epi32(fifth, second, _mm512_srli_epi32(q, 4), kSelect);
  sums.template add<part>(x, K, _mm512_permutex2var_ps(low, index, high));
  sums.template add<part + 1>(x + 16, K, _mm512_permutex2var_ps(low, index_high, high));
}

struct Q4_0 : SmallBlocks<Q4_0, 18, false> {
  template <int part, typename Sink>
  INTROSPECT_KERNEL static void add(const uint8_t* b, const float* x, int64_t K, const float* d, const float*,
                                    Sink& sums) {
    const auto table = _mm512_mul_ps(_mm512_sub_ps(iota(), _mm512_set1_ps(8)), at(d));
    add_nibbles<part>(b + 2, x, K, table, sums);
  }
};

struct Q4_1 : SmallBlocks<Q4_1, 20, true> {
  template <int part, typename Sink>
  INTROSPECT_KERNEL static void add(const uint8_t* b, const float* x, int64_t K, const float* d,
                                    const float* m, Sink& sums) {
    add_nibbles<part>(b + 4, x, K, _mm512_fmadd_ps(iota(), at(d), at(m)), sums);
  }
};

struct Q5_0 : SmallBlocks<Q5_0, 22, false> {
  template <int part, typename Sink>
  INTROSPECT_KERNEL static void add(const uint8_t* b, const float* x, int64_t K, const float* d, const float*,
                                    Sink& sums) {
    const auto high = _mm512_mul_ps(iota(), at(d));
    const auto low = _mm512_mul_ps(_mm512_sub_ps(iota(), _mm512_set1_ps(16)), at(d));
    add_fives<part>(b + 6, word_at(b + 2), x, K, low, high, sums);
  }
};

struct Q5_1 : SmallBlocks<Q5_1, 24, true> {
  template <int part, typename Sink>
  INTROSPECT_KERNEL static void add(const uint8_t* b, const float* x, int64_t K, const float* d,
                                    const float* m, Sink& sums) {
    const auto low = _mm512_fmadd_ps(iota(), at(d), at(m));
    const auto high = _mm512_fmadd_ps(_mm512_add_ps(iota(), _mm512_set1_ps(16)), at(d), at(m));
    add_fives<part>(b + 8, word_at(b + 4), x, K, low, high, sums);
  }
};

INTROSPECT_KERNEL __m512 signed_bytes(__m128i codes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}

struct Q8_0 : SmallBlocks<Q8_0, 34, false> {
  template <int part, typename Sink>
  INTROSPECT_KERNEL static void add(const uint8_t* b, const float* x, int64_t K, const float* d, const float*,
                                    Sink& sums) {
    const auto* codes = reinterpret_cast<const __m128i*>(b + 2);
    sums.template add<part>(x, K, _mm512_mul_ps(signed_bytes(_mm_loadu_si128(codes)), at(d)));
    sums.template add<part + 1>(x + 16, K, _mm512_mul_ps(signed_bytes(_mm_loadu_si128(codes + 1)), at(d)));
  }
};

/// `group_scales`, in memory.
INTROSPECT_KERNEL void widen_groups(const uint8_t* b, float* scales) {
  _mm512_storeu_ps(scales, group_scales(b));
  keep_in_memory();
}

struct Q4_K {
  template <typename Sink>
  INTROSPECT_KERNEL static void row(const float* x, const uint8_t* b, int64_t K, Sink& sums) {
    float s[16];
    for (int64_t k = 0; k < K; k += kSuperBlock, b += bytes) {
      fetch_ahead(b, bytes);
      widen_groups(b, s);
      for (int pair = 0; pair < 4; ++pair) {
        const auto low = _mm512_fmadd_ps(iota(), at(s + 2 * pair), at(s + 8 + 2 * pair));
        const auto high = _mm512_fmadd_ps(iota(), at(s + 2 * pair + 1), at(s + 9 + 2 * pair));
        const float* xs = x + k + 64 * pair;
        const auto q0 = bytes_at(b + 16 + 32 * pair), q1 = bytes_at(b + 32 + 32 * pair);
        sums.template add<0>(xs, K, _mm512_permutexvar_ps(q0, low));
        sums.template add<1>(xs + 16, K, _mm512_permutexvar_ps(q1, low));
        sums.template add<2>(xs + 32, K, _mm512_permutexvar_ps(_mm512_srli_epi32(q0, 4), high));
        sums.template add<3>(xs + 48, K, _mm512_permutexvar_ps(_mm512_srli_epi32(q1, 4), high));
      }
    }
  }
  static constexpr int64_t bytes = 144, elements = kSuperBlock;
};

struct Q5_K {
  /// The values of group `g`, whose codes' halves of bytes stand lowest in q and whose fifth bits are bit g of `bits`.
  INTROSPECT_KERNEL static __m512 values(__m512i q, __m512i bits, int g, __m512 low, __m512 high) {
    const auto fifth = g < 4 ? _mm512_slli_epi32(bits, static_cast<unsigned>(4 - g))
                             : _mm512_srli_epi32(bits, static_cast<unsigned>(g - 4));
    const auto index = _mm512_ternarylogic_epi32(_mm512_set1_epi32(16), fifth, q, 0xca);
    return _mm512_permutex2var_ps(low, index, high);
  }

  template <typename Sink>
  INTROSPECT_KERNEL static void row(const float* x, const uint8_t* b, int64_t K, Sink& sums) {
    float s[16];
    const auto upper = _mm512_add_ps(iota(), _mm512_set1_ps(16));
    for (int64_t k = 0; k < K; k += kSuperBlock, b += bytes) {
      fetch_ahead(b, bytes);
      widen_groups(b, s);
      const auto bits0 = bytes_at(b + 16), bits1 = bytes_at(b + 32);
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) {
        const auto low = _mm512_fmadd_ps(iota(), at(s + g), at(s + 8 + g));
        const auto high = _mm512_fmadd_ps(upper, at(s + g), at(s + 8 + g));
        const uint8_t* codes = b + 48 + g / 2 * 32;
        auto q0 = bytes_at(codes), q1 = bytes_at(codes + 16);
        if (g % 2 == 1) {
          q0 = _mm512_srli_epi32(q0, 4);
          q1 = _mm512_srli_epi32(q1, 4);
        }
        const float* xs = x + k + 32 * g;
        sums.template add<0>(xs, K, values(q0, bits0, g, low, high));
        sums.template add<1>(xs + 16, K, values(q1, bits1, g, low, high));
      }
    }
  }
  static constexpr int64_t bytes = 176, elements = kSuperBlock;
};

struct Q6_K {
  template <typename Sink>
  INTROSPECT_KERNEL static void row(const float* x, const uint8_t* b, int64_t K, Sink& sums) {
    float s[16];
    const auto low_half = _mm256_set1_epi8(15), high_bits = _mm256_set1_epi8(0x30),
               middle = _mm256_set1_epi8(32);
    for (int64_t k = 0; k < K; k += kSuperBlock, b += bytes) {
      fetch_ahead(b, bytes);
      const auto d = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(b[208] | b[209] << 8)));
      const auto scales = signed_bytes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 192)));
      _mm512_storeu_ps(s, _mm512_mul_ps(scales, d));
      keep_in_memory();
      for (int half = 0; half < 2; ++half) {
        const auto load = [](const uint8_t* p) INTROSPECT_AVX512 {
          return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        };
        const auto low0 = load(b + 64 * half), low1 = load(b + 64 * half + 32),
                   high = load(b + 128 + 32 * half);
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; ++quarter) {
          auto low = quarter % 2 == 0 ? low0 : low1;
          if (quarter >= 2) low = _mm256_srli_epi16(low, 4);
          const auto top = quarter == 3   ? _mm256_srli_epi16(high, 2)
                           : quarter == 2 ? high
                                          : _mm256_slli_epi16(high, quarter == 0 ? 4 : 2);
          const auto codes = _mm256_sub_epi8(
              _mm256_or_si256(_mm256_and_si256(low, low_half), _mm256_and_si256(top, high_bits)), middle);
          const int group = 8 * half + 2 * quarter;
          const float* xs = x + k + 16 * group;
          const auto w0 = _mm512_mul_ps(signed_bytes(_mm256_castsi256_si128(codes)), at(s + group));
          const auto w1 = _mm512_mul_ps(signed_bytes(_mm256_extracti128_si256(codes, 1)), at(s + group + 1));
          if (quarter % 2 == 0) {
            sums.template add<0>(xs, K, w0);
            sums.template add<1>(xs + 16, K, w1);
          } else {
            sums.template add<2>(xs, K, w0);
            sums.template add<3>(xs + 16, K, w1);
          }
        }
      }
    }
  }
  static constexpr int64_t bytes = 210, elements = kSuperBlock;
};

/// Where a row is a whole number of registers.
struct F16 {
  template <typename Sink>
  INTROSPECT_KERNEL static void row(const float* x, const uint8_t* b, int64_t K, Sink& sums) {
    const auto value = [&](int64_t k) INTROSPECT_AVX512 {
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 2 * k)));
    };
    for (int64_t k = 0; k + 32 <= K; k += 32) {
      fetch_ahead(b + 2 * k, 64);
      sums.template add<0>(x + k, K, value(k));
      sums.template add<1>(x + k + 16, K, value(k + 16));
    }
    if (K % 32 != 0) sums.template add<0>(x + K - 16, K, value(K - 16));
  }
  static constexpr int64_t bytes = 2, elements = 1;
};

template <typename Format, int N>
INTROSPECT_AVX512 void rows_in_registers(const float* x, const uint8_t* rows, int64_t n_rows, int64_t K,
                                         float* out, int64_t stride) {
  const int64_t row_bytes = K / Format::elements * Format::bytes;
  for (int64_t r = 0; r < n_rows; ++r) {
    Sums<N> sums;
    Format::row(x, rows + r * row_bytes, K, sums);
    sums.store(out + r, stride);
  }
}

template <typename Format>
void in_registers(const float* x, int64_t N, const uint8_t* rows, int64_t n_rows, int64_t K, float* out,
                  int64_t stride) {
  with_row_count(
      N, [&](auto n) { rows_in_registers<Format, decltype(n)::value>(x, rows, n_rows, K, out, stride); });
}

using RoundRow = void (*)(const uint8_t* row, int64_t K, uint16_t* out);

template <typename Format>
INTROSPECT_AVX512 void rounded_row(const uint8_t* row, int64_t K, uint16_t* out) {
  const auto* place = reinterpret_cast<const float*>(out);  // never read
  Rounded sink{place, out};
  Format::row(place, row, K, sink);
}

/// The same for codes of four bits in groups of 32: the sixteen values of a group are rounded once.
INTROSPECT_AVX512 void rounded_q4_k(const uint8_t* b, int64_t K, uint16_t* out) {
  const auto table = [](const float* scale, const float* offset) INTROSPECT_AVX512 {
    // Twice, so that a code's place does not depend on the bit above it.
    return _mm512_broadcast_i64x4(rounded(_mm512_fmadd_ps(iota(), at(scale), at(offset))));
  };
  float s[16];
  for (int64_t k = 0; k < K; k += kSuperBlock, b += Q4_K::bytes) {
    widen_groups(b, s);
    for (int pair = 0; pair < 4; ++pair) {
      const auto low = table(s + 2 * pair, s + 8 + 2 * pair),
                 high = table(s + 2 * pair + 1, s + 9 + 2 * pair);
      const auto codes =
          _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 16 + 32 * pair)));
      _mm512_storeu_si512(out + k + 64 * pair, _mm512_permutexvar_epi16(codes, low));
      _mm512_storeu_si512(out + k + 64 * pair + 32,
                          _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), high));
    }
  }
}

struct Kernels {
  std::string_view name;
  DotRows dot;
  RoundRow round;
};

template <typename Format>
constexpr Kernels kernels(std::string_view name) {
  return {name, in_registers<Format>, rounded_row<Format>};
}

const Kernels* kernels_of(std::string_view name, int64_t K) {
  static constexpr Kernels kKernels[] = {
      kernels<Q4_0>("Q4_0"), kernels<Q4_1>("Q4_1"), kernels<Q5_0>("Q5_0"),
      kernels<Q5_1>("Q5_1"), kernels<Q8_0>("Q8_0"), {"Q4_K", in_registers<Q4_K>, rounded_q4_k},
      kernels<Q5_K>("Q5_K"), kernels<Q6_K>("Q6_K"), kernels<F16>("F16")};
  if (!has_avx512() || K % 16 != 0) return nullptr;
  for (const auto& known : kKernels)
    if (known.name == name) return &known;
  return nullptr;
}

#else

struct Kernels {
  DotRows dot;
  void (*round)(const uint8_t* row, int64_t K, uint16_t* out);
};

const Kernels* kernels_of(std::string_view, int64_t) {
  return nullptr;
}

#endif

}  // namespace

void dot_rows(const Quantisation& quantisation, const float* x, int64_t N, const uint8_t* rows,
              int64_t n_rows, int64_t K, float* out, int64_t stride) {
  if (const auto* kernels = kernels_of(quantisation.name, K))
    return kernels->dot(x, N, rows, n_rows, K, out, stride);
  with_lanes([&](auto lanes) INTROSPECT_INLINED {
    with_row_count(N, [&](auto n) INTROSPECT_INLINED {
      unpacked_rows<decltype(lanes), decltype(n)::value>(quantisation, x, rows, n_rows, K, out, stride);
    });
  });
}

void round_rows(const Quantisation& quantisation, const uint8_t* rows, int64_t row_bytes, int64_t n_rows,
                int64_t K, uint16_t* out, int64_t stride) {
  const auto* kernels = kernels_of(quantisation.name, K);
  const auto [elements, bytes] = quantisation.layout;
  for (int64_t r = 0; r < n_rows; ++r) {
    const uint8_t* row = rows + r * row_bytes;
    uint16_t* to = out + r * stride;
    if (kernels) {
      kernels->round(row, K, to);
      continue;
    }
    float values[kUnpacked];
    for (int64_t first = 0; first < K; first += kUnpacked) {
      const int64_t n = std::min(kUnpacked, K - first);
      quantisation.dequantise(row + first / elements * bytes, n / elements, values);
      round_to_bfloat16(values, n, to + first);
    }
  }
}

}  // namespace introspect::ops

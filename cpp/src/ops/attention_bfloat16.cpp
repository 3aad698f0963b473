#include "ops/attention_bfloat16.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "core/reused_memory.h"
#include "ops/bfloat16_kernels.h"
#include "ops/exponential.h"
#include "ops/gemm_bfloat16.h"
#include "ops/lines.h"
#include "ops/needs_grad.h"

namespace introspect::ops {

#if INTROSPECT_X86_KERNELS

namespace {

using BFloat16 = c10::BFloat16;

constexpr int64_t kQueries = 2 * kPanelRows;  // of one task, of neighbouring heads and positions
constexpr int64_t kBlocksAtOnce = 16;         // of 32 keys: their scores stay in L2
constexpr int64_t kBlocksPerTask = 16;        // less is not worth a thread

struct Heads {
  const BFloat16* data;
  int64_t batch, head, position;  // strides; the numbers of a head are dense
  const BFloat16* at(int64_t b, int64_t h, int64_t s) const {
    return data + b * batch + h * head + s * position;
  }
};

/// Scores stand as [keys, queries], so that a register holds one key's of 16 queries: a block of 32 keys times the
/// panels of the queries, and a block of the values' columns times the panels of the pattern.
struct Attention {
  Heads q, k, v;
  BFloat16* out;  // [B, T, H, K]
  int64_t B, T, H, G, S, K;
  float scale;
  bool causal;
  const uint32_t* seen;  // [B or 1, T, key blocks]: a bit for each key; null: see `causal`
  int64_t seen_batch;    // from one row of the batch to the next
  BFloat16* columns;     // of the values: [B, G, key blocks, K, 32 keys]
  BFloat16* last_keys;   // [B, G, 32 keys, K]: the last block's, zero where it ends

  int64_t shared() const { return H / G; }
  int64_t key_blocks() const { return (S + kBlockRows - 1) / kBlockRows; }
  int64_t query_groups() const { return (T * shared() + kQueries - 1) / kQueries; }
  int64_t whole_blocks() const { return S / kBlockRows; }
  const BFloat16* values(int64_t bg, int64_t block) const {
    return columns + (bg * key_blocks() + block) * kBlockRows * K;
  }
};

/// The values' columns of the blocks [begin, end), numbered [B, G, key blocks], and the last block's keys.
INTROSPECT_AVX512_BFLOAT16 void pack_values(const Attention& o, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t bg = i / o.key_blocks(), block = i % o.key_blocks(), b = bg / o.G, g = bg % o.G;
    const int64_t first_key = block * kBlockRows, n = std::min(kBlockRows, o.S - first_key);
    BFloat16* to = o.columns + i * kBlockRows * o.K;
    for (int64_t d = 0; d < o.K; d += 16) {
      __m512i r[16];
      for (int64_t pair = 0; pair < 16; ++pair) {
        const auto half = [&](int64_t s) INTROSPECT_AVX512_BFLOAT16 {
          const auto* row = o.v.at(b, g, first_key + std::min(s, n - 1)) + d;
          return _mm512_maskz_cvtepu16_epi32(s < n ? 0xffff : 0,
                                             _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
        };
        r[pair] = _mm512_or_si512(half(2 * pair), _mm512_slli_epi32(half(2 * pair + 1), 16));
      }
      transpose(r);
      for (int64_t c = 0; c < 16; ++c) _mm512_store_si512(to + (d + c) * kBlockRows, r[c]);
    }
    if (n == kBlockRows) continue;
    BFloat16* keys = o.last_keys + bg * kBlockRows * o.K;
    for (int64_t s = 0; s < n; ++s)
      std::copy(o.k.at(b, g, first_key + s), o.k.at(b, g, first_key + s) + o.K, keys + s * o.K);
    std::fill(keys + n * o.K, keys + kBlockRows * o.K, BFloat16(0.0f));
  }
}

INTROSPECT_PANEL_INLINE __m512 exponential_of(__m512 x) {
  Lanes<16>::Floats floats;
  std::memcpy(&floats, &x, sizeof floats);
  floats = exponential<Lanes<16>>(floats);
  std::memcpy(&x, &floats, sizeof x);
  return x;
}

/// What the queries of one panel have seen so far: the largest score times the scale, the sum of the exponentials, and
/// who has seen a key at all.
struct Softmax {
  __m512 largest, total;
  __mmask16 sees;
};

/// The panels of queries of one row, group and part of the positions.
template <typename Kernel>
class Queries {
 public:
  INTROSPECT_AVX512_BFLOAT16 Queries(const Attention& o)
      : o_(o),
        panel_size_(o.K * kPanelRows),
        queries_(2 * panel_size_),
        scores_(2 * kBlocksAtOnce * kSums),
        pattern_(2 * kBlocksAtOnce * kStep * kPanelRows),
        sums_(2 * (o.K / kBlockRows) * kSums) {}

  /// Part `part` of the queries of group g of row b.
  INTROSPECT_AVX512_BFLOAT16 void attend(int64_t b, int64_t g, int64_t part) {
    const int64_t R = o_.shared();
    b_ = b, g_ = g, first_ = part * kQueries, n_ = std::min(kQueries, o_.T * R - first_);
    n_panels_ = n_ > kPanelRows ? 2 : 1;
    for (int64_t i = 0, t = first_ / R, r = first_ % R; i < kQueries; ++i) {
      position_[i] = static_cast<int32_t>(t), head_[i] = static_cast<int32_t>(g * R + r);
      if (i + 1 < n_ && ++r == R) ++t, r = 0;
    }
    for (int64_t p = 0; p < n_panels_; ++p) {
      const auto row = [&](int64_t i) {
        return o_.q.at(b, head_[p * kPanelRows + i], position_[p * kPanelRows + i]);
      };
      pack_panel(row, std::min(kPanelRows, n_ - p * kPanelRows), o_.K, queries_.get() + p * panel_size_);
      softmax_[p] = {_mm512_set1_ps(std::numeric_limits<float>::lowest()), _mm512_setzero_ps(), 0};
    }
    const auto [first, last] = blocks_seen();
    for (int64_t block = first, end; block < last; block = end) {
      // Where chunks end does not depend on the first block that a neighbour sees.
      end = std::min(last, (block / kBlocksAtOnce + 1) * kBlocksAtOnce);
      score(block, end);
      const bool again = block > first;
      for (int64_t p = 0; p < n_panels_; ++p) weigh(p, block, end, again);
      add_values(block, end, again);
    }
    write();
  }

 private:
  /// The blocks of keys between the first and the last that one of the queries sees.
  std::pair<int64_t, int64_t> blocks_seen() const {
    const int64_t first_t = position_[0], last_t = position_[n_ - 1];
    if (!o_.seen)
      return {0, o_.causal ? std::max<int64_t>(0, last_t + o_.S - o_.T) / kBlockRows + 1 : o_.key_blocks()};
    int64_t first = o_.key_blocks(), last = 0;
    for (int64_t t = first_t; t <= last_t; ++t) {
      const uint32_t* bits = o_.seen + b_ * o_.seen_batch + t * o_.key_blocks();
      for (int64_t block = 0; block < o_.key_blocks(); ++block)
        if (bits[block]) first = std::min(first, block), last = std::max(last, block + 1);
    }
    return {std::min(first, last), last};
  }

  /// For each of 16 queries a bit for each key of the block.
  INTROSPECT_AVX512_BFLOAT16 __m512i seen(int64_t p, int64_t block) const {
    const auto position = _mm512_load_si512(position_ + p * kPanelRows);
    if (o_.seen) {
      const auto row = _mm512_mullo_epi32(position, _mm512_set1_epi32(static_cast<int>(o_.key_blocks())));
      return _mm512_i32gather_epi32(row, o_.seen + b_ * o_.seen_batch + block, 4);
    }
    const auto before = static_cast<int>(block * kBlockRows);
    const auto last =
        o_.causal ? _mm512_add_epi32(position, _mm512_set1_epi32(static_cast<int>(o_.S - o_.T) - before))
                  : _mm512_set1_epi32(static_cast<int>(o_.S) - 1 - before);
    const auto any = _mm512_cmpge_epi32_mask(last, _mm512_setzero_si512());  // shifts beyond 31 give zero
    return _mm512_maskz_sub_epi32(any, _mm512_sllv_epi32(_mm512_set1_epi32(2), last), _mm512_set1_epi32(1));
  }

  /// True if every query sees every key of the block.
  bool all_seen(int64_t block) const {
    const int64_t end = (block + 1) * kBlockRows;
    return !o_.seen && end <= (o_.causal ? position_[0] + o_.S - o_.T + 1 : o_.S);
  }

  INTROSPECT_AVX512_BFLOAT16 void score(int64_t block, int64_t end) {
    BlockOperands part;
    part.panel = queries_.get();
    part.panel_size = panel_size_;
    part.steps = o_.K / kStep;
    part.rows = kPanelRows;
    for (int64_t s = block; s < end; ++s) {
      const bool whole = s < o_.whole_blocks();
      part.w = reinterpret_cast<const char*>(whole ? o_.k.at(b_, g_, s * kBlockRows)
                                                   : o_.last_keys + (b_ * o_.G + g_) * kBlockRows * o_.K);
      part.row_bytes = 2 * (whole ? o_.k.position : o_.K);
      multiply(part, scores_.get() + 2 * (s - block) * kSums);
    }
  }

  /// The scores' exponentials as a panel of the pattern; sums under a smaller maximum are scaled to the new one.
  INTROSPECT_AVX512_BFLOAT16 void weigh(int64_t p, int64_t block, int64_t end, bool again) {
    const auto minus_infinity = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    auto& [largest, total, sees_any] = softmax_[p];
    auto most = minus_infinity;
    for (int64_t s = block; s < end; ++s) {
      float* scores = scores_.get() + (2 * (s - block) + p) * kSums;
      const bool all = all_seen(s);
      const auto bits = all ? _mm512_set1_epi32(-1) : seen(p, s);
      sees_any |= _mm512_test_epi32_mask(bits, bits);
      for (int64_t i = 0; i < kBlockRows; ++i) {
        auto score = _mm512_load_ps(scores + i * kPanelRows);
        if (!all) {
          const auto sees = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(static_cast<int>(1u << i)));
          score = _mm512_mask_mov_ps(minus_infinity, sees, score);
          _mm512_store_ps(scores + i * kPanelRows, score);
        }
        most = _mm512_max_ps(score, most);
      }
    }
    const auto scale = _mm512_set1_ps(o_.scale);
    const auto before = largest;
    largest = _mm512_max_ps(_mm512_mul_ps(most, scale), largest);
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t s = block; s < end; ++s) {
      const float* scores = scores_.get() + (2 * (s - block) + p) * kSums;
      BFloat16* pattern = pattern_.get() + (p * kBlocksAtOnce + s - block) * kStep * kPanelRows;
      for (int64_t pair = 0; pair < kBlockRows / 2; ++pair) {
        __m512 e[2];
        for (int64_t i = 0; i < 2; ++i) {
          const auto score = _mm512_load_ps(scores + (2 * pair + i) * kPanelRows);
          const auto seen = _mm512_cmp_ps_mask(score, minus_infinity, _CMP_NEQ_UQ);
          const auto x = _mm512_fmsub_ps(score, scale, largest);
          e[i] = _mm512_maskz_mov_ps(seen, exponential_of(x));
          sum[i] = _mm512_add_ps(sum[i], e[i]);
        }
        _mm512_store_si512(pattern + pair * kStep, as_pairs(e[0], e[1]));
      }
    }
    const auto now = _mm512_add_ps(sum[0], sum[1]);
    if (!again) {
      total = now;
      return;
    }
    const auto factor = exponential_of(_mm512_sub_ps(before, largest));
    total = _mm512_fmadd_ps(total, factor, now);
    for (int64_t c = 0; c < o_.K / kBlockRows; ++c)
      for (int64_t i = 0; i < kBlockRows; ++i) {
        float* sums = sums_.get() + (2 * c + p) * kSums + i * kPanelRows;
        _mm512_store_ps(sums, _mm512_mul_ps(_mm512_load_ps(sums), factor));
      }
  }

  INTROSPECT_AVX512_BFLOAT16 void add_values(int64_t block, int64_t end, bool again) {
    BlockOperands part;
    part.panel = pattern_.get();
    part.panel_size = kBlocksAtOnce * kStep * kPanelRows;
    part.steps = end - block;
    part.rows = kPanelRows;
    part.add = again;
    part.row_bytes = 2 * kBlockRows;
    part.step_bytes = 2 * kBlockRows * o_.K;
    for (int64_t c = 0; c < o_.K / kBlockRows; ++c) {
      part.w = reinterpret_cast<const char*>(o_.values(b_ * o_.G + g_, block) + c * kBlockRows * kBlockRows);
      multiply(part, sums_.get() + 2 * c * kSums);
    }
  }

  INTROSPECT_AVX512_BFLOAT16 void write() const {
    for (int64_t p = 0; p < n_panels_; ++p) {
      // A query that sees no key gives 0, as ATen's does; one whose scores are all -inf 0/0, as a softmax does.
      const auto some = softmax_[p].sees;
      const auto share = _mm512_maskz_div_ps(some, _mm512_set1_ps(1.0f), softmax_[p].total);
      for (int64_t c = 0; c < o_.K / kBlockRows; ++c) {
        const float* sums = sums_.get() + (2 * c + p) * kSums;
        __m512i r[16];
        for (int64_t i = 0; i < 16; ++i)
          r[i] = as_pairs(_mm512_maskz_mul_ps(some, _mm512_load_ps(sums + 2 * i * kPanelRows), share),
                          _mm512_maskz_mul_ps(some, _mm512_load_ps(sums + (2 * i + 1) * kPanelRows), share));
        transpose(r);
        for (int64_t i = 0; i < std::min(kPanelRows, n_ - p * kPanelRows); ++i) {
          const int64_t at = p * kPanelRows + i;
          _mm512_storeu_si512(
              o_.out + ((b_ * o_.T + position_[at]) * o_.H + head_[at]) * o_.K + c * kBlockRows, r[i]);
        }
      }
    }
  }

  INTROSPECT_AVX512_BFLOAT16 void multiply(const BlockOperands& part, float* sums) const {
    if (n_panels_ == 2)
      Kernel::template multiply<2>(part, sums);
    else
      Kernel::template multiply<1>(part, sums);
  }

  const Attention& o_;
  Kernel kernel_;
  int64_t panel_size_;
  Lines<BFloat16> queries_;
  Lines<float> scores_;      // [key blocks, 2 panels, 32 keys, 16 queries]
  Lines<BFloat16> pattern_;  // [2 panels, key blocks, 16 pairs of keys, 16 queries, 2]
  Lines<float> sums_;        // [K / 32, 2 panels, 32 columns, 16 queries]
  Softmax softmax_[2];
  alignas(64) int32_t position_[kQueries], head_[kQueries];
  int64_t b_ = 0, g_ = 0, first_ = 0, n_ = 0, n_panels_ = 0;
};

template <typename Kernel>
INTROSPECT_AVX512_BFLOAT16 void attend(const Attention& o, int64_t begin, int64_t end) {
  Queries<Kernel> queries(o);
  const int64_t groups = o.query_groups();
  for (int64_t i = begin; i < end; ++i) {
    // Short and long parts side by side, so that every thread's share of a causal mask is as large.
    const int64_t bg = i / groups, at = i % groups, part = at % 2 ? groups - 1 - at / 2 : at / 2;
    queries.attend(bg / o.G, bg % o.G, part);
  }
}

/// A bit for each key that a query sees, from `additive` [B or 1, T, S]; false if there is more than 0 and -inf.
INTROSPECT_AVX512_BFLOAT16 bool pack_mask(const BFloat16* additive, uint32_t* bits, int64_t S, int64_t begin,
                                          int64_t end) {
  const int64_t blocks = (S + kBlockRows - 1) / kBlockRows;
  __mmask32 others = 0;
  for (int64_t row = begin; row < end; ++row)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t s = block * kBlockRows;
      const auto there = first(S - s);
      const auto halves = _mm512_maskz_loadu_epi16(there, additive + row * S + s);
      const auto zero = _mm512_mask_testn_epi16_mask(there, halves, _mm512_set1_epi16(0x7fff));
      others |=
          there & ~zero & ~_mm512_cmpeq_epi16_mask(halves, _mm512_set1_epi16(static_cast<short>(0xff80)));
      bits[row * blocks + block] = zero;
    }
  return others == 0;
}

Heads heads_of(const torch::Tensor& t, int64_t head_dim, int64_t position_dim) {
  return {t.const_data_ptr<BFloat16>(), t.stride(0), t.stride(head_dim), t.stride(position_dim)};
}

}  // namespace

bool has_attention_bfloat16(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                            const torch::Tensor& v_BGSK, const torch::Tensor& additive) {
  const auto fits = [](const torch::Tensor& t) {
    return t.is_cpu() && t.scalar_type() == torch::kBFloat16 && !needs_grad(t);
  };
  return has_gemm_bfloat16() && fits(q_BTHK) && fits(k_BGSK) && fits(v_BGSK) && q_BTHK.numel() > 0 &&
         k_BGSK.numel() > 0 && q_BTHK.size(3) % kBlockRows == 0 && v_BGSK.size(3) == q_BTHK.size(3) &&
         (!additive.defined() || (fits(additive) && additive.dim() == 4 && additive.size(1) == 1 &&
                                  (additive.size(0) == 1 || additive.size(0) == q_BTHK.size(0))));
}

torch::Tensor attention_bfloat16(const torch::Tensor& q_any, const torch::Tensor& k_any,
                                 const torch::Tensor& v_any, double scale, const torch::Tensor& additive,
                                 bool causal) {
  const auto dense = [](const torch::Tensor& t) { return t.stride(3) == 1 ? t : t.contiguous(); };
  const auto q = dense(q_any), k = dense(k_any), v = dense(v_any);
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), K = q.size(3), G = k.size(1), S = k.size(2);
  auto out = reused_empty({B, T, H, K}, q.options());
  Attention o = {heads_of(q, 2, 1),
                 heads_of(k, 1, 2),
                 heads_of(v, 1, 2),
                 out.mutable_data_ptr<BFloat16>(),
                 B,
                 T,
                 H,
                 G,
                 S,
                 K,
                 static_cast<float>(scale),
                 causal,
                 nullptr,
                 0,
                 nullptr,
                 nullptr};
  std::vector<uint32_t> seen;
  if (additive.defined()) {
    const int64_t rows = additive.size(0) * T;
    const auto mask = additive.expand({additive.size(0), 1, T, S}).contiguous();
    seen.resize(static_cast<size_t>(rows * o.key_blocks()));
    std::atomic<bool> plain = true;
    parallel_for(0, rows, std::max<int64_t>(1, (1 << 18) / S), [&](int64_t begin, int64_t end) {
      if (!pack_mask(mask.const_data_ptr<BFloat16>(), seen.data(), S, begin, end)) plain = false;
    });
    if (!plain) return {};
    o.seen = seen.data();
    o.seen_batch = additive.size(0) > 1 ? T * o.key_blocks() : 0;
  }
  const Lines<BFloat16> columns(B * G * (o.key_blocks() + 1) * kBlockRows * K);
  o.columns = columns.get();
  o.last_keys = columns.get() + B * G * o.key_blocks() * kBlockRows * K;
  parallel_for(0, B * G * o.key_blocks(), 4 * kBlocksPerTask,
               [&](int64_t begin, int64_t end) { pack_values(o, begin, end); });
#if INTROSPECT_AMX_KERNELS
  const auto part = bfloat16_products() == "tiles" ? attend<ByTiles> : attend<ByPairs>;
#else
  const auto part = attend<ByPairs>;
#endif
  parallel_for(0, B * G * o.query_groups(), std::max<int64_t>(1, kBlocksPerTask / o.key_blocks()),
               [&](int64_t begin, int64_t end) { part(o, begin, end); });
  return out;
}

#else

bool has_attention_bfloat16(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
                            const torch::Tensor&) {
  return false;
}

torch::Tensor attention_bfloat16(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&, double,
                                 const torch::Tensor&, bool) {
  return {};
}

#endif

}  // namespace introspect::ops

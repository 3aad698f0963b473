#include "ops/gemm_bfloat16.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "ops/bfloat16_kernels.h"
#include "ops/lines.h"
#include "ops/silu_times.h"

namespace introspect::ops {

#if INTROSPECT_X86_KERNELS

namespace {

using BFloat16 = c10::BFloat16;

constexpr int64_t kMostRows = 512;     // of one sweep over w
constexpr int64_t kCached = 1 << 19;   // numbers of x that stay in L2 while w passes by
constexpr int64_t kStepsAtOnce = 12;   // of two panels and a block, which then stay in L1
constexpr int64_t kBlocksAtOnce = 8;   // that pass by a part of x where all of it does not stay in L2
constexpr int64_t kUnpackedSteps = 8;  // of those steps, where w is unpacked: whole blocks of every encoding
constexpr int64_t kFewPanels = 8;  // beside which unpacking is most of the work: of longer pieces of a row
constexpr int64_t kBytesPerTask = 1 << 16, kFlopsPerTask = 1 << 22;  // either is worth a thread
constexpr int64_t kRowsPerThread = 128;  // from which on a thread multiplies rows of its own by all of w
constexpr int kFewThreads = 4;           // as many read all of w at once; measured: two

/// x [rows, K] as panels, times w [N, K] -> out [rows, N].
///
/// A panel is 16 rows of x as pairs, [steps * 16 pairs, 16 rows, 2], so that one load gives a pair of each row; missing
/// rows and what K lacks to a whole step are zero.
struct Product {
  const BFloat16* panels;
  const BFloat16* w;
  const float* bias;
  BFloat16* out;
  int64_t rows, N, K;
  const UnpackBFloat16* unpack = nullptr;  // instead of w

  int64_t steps() const { return (K + kStep - 1) / kStep; }
  int64_t panel_size() const { return steps() * kStep * kPanelRows; }
  int64_t n_panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  /// Two panels read w once, as it lies in memory. More read it part by part, so that the part stays in L1 meanwhile.
  int64_t parts() const { return n_panels() > 2 ? (steps() + kStepsAtOnce - 1) / kStepsAtOnce : 1; }
  /// Rows of the next block that memory is asked for beside two panels: all at once, what L1 asks for would wait.
  int64_t rows_ahead() const { return n_panels() > 6 ? 8 : n_panels() > 2 ? 16 : kBlockRows; }
};

/// Panels [begin, end) of x [M, K].
INTROSPECT_AVX512_BFLOAT16 void pack(const BFloat16* x, BFloat16* panels, int64_t M, int64_t K, int64_t begin,
                                     int64_t end) {
  const int64_t size = (K + kStep - 1) / kStep * kStep * kPanelRows;
  for (int64_t p = begin; p < end; ++p)
    pack_panel([&](int64_t i) { return x + (p * kPanelRows + i) * K; },
               std::min(kPanelRows, M - p * kPanelRows), K, panels + p * size);
}

/// Blocks of w over some steps as the kernels take them: in place, or a copy on cache lines, zero where w ends.
class Blocks {
 public:
  Blocks(const Product& o, int64_t at_once) : o_(o), width_(at_once * kStep), copy_(kBlockRows * width_) {
    in_place_ = reinterpret_cast<uintptr_t>(o.w) % 64 == 0 && o.K % kStep == 0;
  }

  /// The block whose first row is n, before that of `next`; N: none.
  BlockOperands at(int64_t n, int64_t next, int64_t step, int64_t steps) const {
    const int64_t k = step * kStep, rows = std::min(kBlockRows, o_.N - n);
    BlockOperands out;
    out.panel_size = o_.panel_size();
    out.steps = steps;
    out.add = step > 0;
    const BFloat16* w = o_.w + n * o_.K + k;
    if (in_place_ && rows == kBlockRows) {
      out.w = reinterpret_cast<const char*>(w);
      out.row_bytes = 2 * o_.K;
      if (next + kBlockRows <= o_.N) out.next = reinterpret_cast<const char*>(o_.w + next * o_.K + k);
      out.n_next = o_.rows_ahead();
      return out;
    }
    out.w = reinterpret_cast<const char*>(copy_.get());
    out.row_bytes = 2 * width_;
    for (int64_t r = 0; r < kBlockRows; ++r) {
      BFloat16* row = copy_.get() + r * width_;
      const int64_t there = r < rows ? std::min(width_, o_.K - k) : 0;
      std::fill(std::copy(w + r * o_.K, w + r * o_.K + there, row), row + width_, BFloat16(0.0f));
    }
    return out;
  }

 private:
  Product o_;
  int64_t width_;
  bool in_place_;
  Lines<BFloat16> copy_;
};

/// After panels p and p + 1: the rows of the next block after those that memory was asked for.
inline void ask_on(BlockOperands& o, int64_t p) {
  if (o.next) o.next = (p / 2 + 1) * o.n_next < kBlockRows ? o.next + o.n_next * o.row_bytes : nullptr;
}

/// The blocks [begin, end) of w times every panel.
template <typename Kernel>
INTROSPECT_AVX512_BFLOAT16 void multiply_blocks(const Product& o, int64_t begin, int64_t end) {
  [[maybe_unused]] const Kernel kernel{};
  const int64_t n_panels = o.n_panels(), steps = o.steps();
  const int64_t parts = o.parts(), at_once = (steps + parts - 1) / parts;
  const int64_t blocks_at_once = parts > 1 && o.panel_size() * n_panels > kCached ? kBlocksAtOnce : 1;
  const int64_t sums_of_block = parts > 1 ? round_up(n_panels, 2) * kSums : 0;  // 0: written at once
  const Lines<float> sums(std::max(2 * kSums, blocks_at_once * sums_of_block));
  const Blocks blocks(o, at_once);
  for (int64_t group = begin; group < end; group += blocks_at_once) {
    for (int64_t step = 0; step < steps; step += at_once)
      for (int64_t b = group; b < std::min(end, group + blocks_at_once); ++b) {
        const int64_t next = b + 1 < end ? (b + 1) * kBlockRows : o.N;
        auto part = blocks.at(b * kBlockRows, next, step, std::min(at_once, steps - step));
        for (int64_t p = 0; p < n_panels; p += 2) {
          const bool two = p + 1 < n_panels;
          part.panel = o.panels + p * o.panel_size() + step * kStep * kPanelRows;
          part.rows = std::min(kPanelRows, o.rows - (p + two) * kPanelRows);
          float* to = sums.get() + (b - group) * sums_of_block + (sums_of_block ? p * kSums : 0);
          if (two)
            Kernel::template multiply<2>(part, to);
          else
            Kernel::template multiply<1>(part, to);
          ask_on(part, p);
          if (step + at_once < steps) continue;
          for (int64_t q = 0; q <= two; ++q) {
            const int64_t m = (p + q) * kPanelRows, n = b * kBlockRows;
            write_rows(to + q * kSums, o.bias ? o.bias + n : nullptr, o.out + m * o.N + n, o.N,
                       std::min(kPanelRows, o.rows - m), std::min(kBlockRows, o.N - n));
          }
        }
      }
  }
}

/// The same of a w that is unpacked: a part of some blocks at a time, which every panel passes by.
template <typename Kernel>
INTROSPECT_AVX512_BFLOAT16 void multiply_unpacked(const Product& o, int64_t begin, int64_t end) {
  [[maybe_unused]] const Kernel kernel{};
  const int64_t n_panels = o.n_panels(), steps = o.steps();
  const int64_t unpacked = kUnpackedSteps * (n_panels > kFewPanels ? 1 : 4), width = unpacked * kStep;
  const int64_t sums_of_block = round_up(n_panels, 2) * kSums;
  const Lines<float> sums(kBlocksAtOnce * sums_of_block);
  const Lines<BFloat16> w(kBlocksAtOnce * kBlockRows * width);
  BlockOperands part;
  part.row_bytes = 2 * width;
  part.panel_size = o.panel_size();
  for (int64_t group = begin; group < end; group += kBlocksAtOnce) {
    const int64_t n_blocks = std::min(kBlocksAtOnce, end - group), first_row = group * kBlockRows;
    const int64_t n_rows = std::min(n_blocks * kBlockRows, o.N - first_row);
    std::fill(w.get() + n_rows * width, w.get() + n_blocks * kBlockRows * width, BFloat16(0.0f));
    for (int64_t step = 0; step < steps; step += kUnpackedSteps) {
      const int64_t within = step % unpacked;
      if (within == 0) {
        const int64_t columns = std::min(width, o.K - step * kStep);
        (*o.unpack)(first_row, n_rows, step* kStep, columns, w.get(), width);
        for (int64_t r = 0; r < n_rows && columns < width; ++r)
          std::fill(w.get() + r * width + columns, w.get() + (r + 1) * width, BFloat16(0.0f));
      }
      part.steps = std::min(kUnpackedSteps, steps - step);
      part.add = step > 0;
      const bool is_last = step + kUnpackedSteps >= steps;
      for (int64_t p = 0; p < n_panels; p += 2) {
        const bool two = p + 1 < n_panels;
        part.panel = o.panels + p * o.panel_size() + step * kStep * kPanelRows;
        part.rows = std::min(kPanelRows, o.rows - (p + two) * kPanelRows);
        for (int64_t b = 0; b < n_blocks; ++b) {
          part.w = reinterpret_cast<const char*>(w.get() + b * kBlockRows * width + within * kStep);
          float* to = sums.get() + b * sums_of_block + p * kSums;
          if (two)
            Kernel::template multiply<2>(part, to);
          else
            Kernel::template multiply<1>(part, to);
          for (int64_t q = 0; q <= two && is_last; ++q) {
            const int64_t m = (p + q) * kPanelRows, n = first_row + b * kBlockRows;
            write_rows(to + q * kSums, o.bias ? o.bias + n : nullptr, o.out + m * o.N + n, o.N,
                       std::min(kPanelRows, o.rows - m), std::min(kBlockRows, o.N - n));
          }
        }
      }
    }
  }
}

/// Sums of a block of gates and of one that they gate, [2, panels, 32 rows of w, 16 rows of x], become panels of the
/// next product, a pair of numbers of one panel at each call.
class Gated {
 public:
  explicit Gated(const Product& o) : o_(o), n_sums_(round_up(o.n_panels(), 2) * kSums) {}

  /// Those of block b; before, all others are done.
  void begin(const float* sums, int64_t b) {
    sums_ = sums, first_ = b * kBlockRows, pair_ = 0, n_pairs_ = o_.n_panels() * kPairs;
  }

  INTROSPECT_AVX512_BFLOAT16 void operator()() {
    if (pair_ == n_pairs_) return;
    const int64_t p = pair_ / kPairs, i = pair_ % kPairs * 2, n = first_ + i, M = o_.N / 2;
    const float* sums = sums_ + p * kSums + i * kPanelRows;
    const auto numbers = [&](int64_t half, int64_t c) INTROSPECT_AVX512_BFLOAT16 {
      const auto sum = V::load(sums + half * n_sums_ + c * kPanelRows);
      return V::rounded_to<BFloat16>(o_.bias ? sum + o_.bias[half * M + n + c] : sum);
    };
    __m512 y[2];
    for (int64_t c = 0; c < 2; ++c) {
      const auto both = silu_times<V>(numbers(0, c), numbers(1, c));
      std::memcpy(&y[c], &both, sizeof both);
    }
    _mm512_store_si512(o_.out + (p * M + n) * kPanelRows, as_pairs(y[0], y[1]));
    ++pair_;
  }

  INTROSPECT_AVX512_BFLOAT16 void rest() {
    while (pair_ < n_pairs_) (*this)();
  }

 private:
  using V = RoundingLanes;
  static constexpr int64_t kPairs = kBlockRows / 2;

  const Product& o_;
  int64_t n_sums_;
  const float* sums_ = nullptr;
  int64_t first_ = 0, pair_ = 0, n_pairs_ = 0;
};

/// The blocks [begin, end) of gates, the first half of w, and of what they gate, the second, times every panel: `out`
/// is panels of N / 2 numbers. Sums of one block become those while the next block is multiplied.
template <typename Kernel>
INTROSPECT_AVX512_BFLOAT16 void multiply_gated(const Product& o, int64_t begin, int64_t end) {
  [[maybe_unused]] const Kernel kernel{};
  const int64_t n_panels = o.n_panels(), steps = o.steps(), parts = o.parts();
  const int64_t at_once = (steps + parts - 1) / parts, n_sums = round_up(n_panels, 2) * kSums;
  const Lines<float> sums(4 * n_sums);
  if (n_panels % 2 == 1)
    std::fill_n(sums.get(), 4 * n_sums, 0.0f);  // few rows of a last panel write their own sums only
  const Blocks blocks(o, at_once);
  Gated gated(o);
  for (int64_t b = begin; b < end; ++b) {
    float* of_block = sums.get() + (b - begin) % 2 * 2 * n_sums;
    const int64_t rows[] = {b * kBlockRows, o.N / 2 + b * kBlockRows,
                            b + 1 < end ? (b + 1) * kBlockRows : o.N};
    for (int64_t step = 0; step < steps; step += at_once)
      for (int64_t half = 0; half < 2; ++half) {
        auto part = blocks.at(rows[half], rows[half + 1], step, std::min(at_once, steps - step));
        for (int64_t p = 0; p < n_panels; p += 2) {
          const bool two = p + 1 < n_panels;
          part.panel = o.panels + p * o.panel_size() + step * kStep * kPanelRows;
          part.rows = std::min(kPanelRows, o.rows - (p + two) * kPanelRows);
          float* to = of_block + half * n_sums + p * kSums;
          if (two)
            Kernel::template multiply<2>(part, to, gated);
          else
            Kernel::template multiply<1>(part, to, gated);
          ask_on(part, p);
        }
      }
    gated.rest();
    gated.begin(of_block, b);
  }
  gated.rest();
}

/// The kernel of blocks in use, over all threads: `n_rows` rows of w each.
void for_blocks(const Product& o, int64_t n_rows, int64_t n_blocks,
                void (*by_pairs)(const Product&, int64_t, int64_t),
                void (*by_tiles)(const Product&, int64_t, int64_t)) {
  const int64_t bytes = 2 * n_rows * o.K, flops = bytes * o.rows;
  const int64_t grain = std::max<int64_t>(1, std::min(kBytesPerTask / bytes, kFlopsPerTask / flops));
  const auto blocks = bfloat16_products() == "tiles" ? by_tiles : by_pairs;
  parallel_for(0, n_blocks, grain, [&](int64_t begin, int64_t end) { blocks(o, begin, end); });
}

/// part(first, last) for M rows of x. Where each thread has many, it takes rows of its own through all products: norms
/// and attention split their rows as evenly, so that what one wrote is in its own cache. Within `part` all then runs on
/// that thread. Fewer rows are one part, whose weights the threads share, and so are those of more than a few threads,
/// which would read the weights as many times.
template <typename Part>
void for_rows(int64_t M, const Part& part) {
  const int threads = at::get_num_threads();
  if (threads > kFewThreads || M < kRowsPerThread * threads) return part(0, M);
  constexpr int64_t kTwoPanels = 2 * kPanelRows;
  parallel_for(0, (M + kTwoPanels - 1) / kTwoPanels, kRowsPerThread / kTwoPanels,
               [&](int64_t begin, int64_t end) { part(begin * kTwoPanels, std::min(M, end * kTwoPanels)); });
}

#if INTROSPECT_AMX_KERNELS
using BestKernel = ByTiles;
#else
using BestKernel = ByPairs;
#endif

void sweep(const Product& o) {
  const int64_t n_blocks = (o.N + kBlockRows - 1) / kBlockRows;
  if (o.unpack)
    for_blocks(o, kBlockRows, n_blocks, multiply_unpacked<ByPairs>, multiply_unpacked<BestKernel>);
  else
    for_blocks(o, kBlockRows, n_blocks, multiply_blocks<ByPairs>, multiply_blocks<BestKernel>);
}

/// x [rows, K] as panels.
void pack(const BFloat16* x, BFloat16* panels, int64_t rows, int64_t K) {
  const int64_t n_panels = (rows + kPanelRows - 1) / kPanelRows;
  const int64_t grain = std::max<int64_t>(1, kBytesPerTask / (2 * round_up(K, kStep) * kPanelRows));
  parallel_for(0, n_panels, grain, [&](int64_t begin, int64_t end) { pack(x, panels, rows, K, begin, end); });
}

/// How many of M rows of x, as panels of K numbers, meet the weights at once: as many as stay in L2, of about one size.
int64_t rows_at_once(int64_t M, int64_t K, bool unpack = false) {
  const int64_t cached = kCached / round_up(K, kStep) / (2 * kPanelRows) * (2 * kPanelRows);
  const int64_t most = unpack || cached < kMostRows / 2 ? kMostRows : std::min(kMostRows, cached);
  const int64_t n_sweeps = std::max<int64_t>(1, (M + most - 1) / most);
  return round_up((M + n_sweeps - 1) / n_sweeps, 2 * kPanelRows);
}

void multiply(const BFloat16* x, const BFloat16* w, const UnpackBFloat16* unpack, const float* bias,
              BFloat16* out, int64_t M, int64_t N, int64_t K) {
  const int64_t each = rows_at_once(M, K, unpack);
  const Lines<BFloat16> panels(round_up(std::min(M, each), kPanelRows) * round_up(K, kStep));
  for (int64_t m = 0; m < M; m += each) {
    const int64_t rows = std::min(each, M - m);
    pack(x + m * K, panels.get(), rows, K);
    sweep({panels.get(), w, bias, out + m * N, rows, N, K, unpack});
  }
}

void gated_mlp(const BFloat16* x, const BFloat16* in, const float* in_bias, const BFloat16* w_out,
               const float* out_bias, BFloat16* out, int64_t rows, int64_t D, int64_t M, int64_t N) {
  const int64_t each = std::min(rows_at_once(rows, D), rows_at_once(rows, M));
  const int64_t most = round_up(std::min(rows, each), kPanelRows);
  const Lines<BFloat16> panels(most * round_up(D, kStep)), hidden(most * M);
  for (int64_t m = 0; m < rows; m += each) {
    const int64_t n = std::min(each, rows - m);
    pack(x + m * D, panels.get(), n, D);
    for_blocks({panels.get(), in, in_bias, hidden.get(), n, 2 * M, D}, 2 * kBlockRows, M / kBlockRows,
               multiply_gated<ByPairs>, multiply_gated<BestKernel>);
    sweep({hidden.get(), w_out, out_bias, out + m * N, n, N, M});
  }
}

}  // namespace

void gemm_bfloat16(const BFloat16* x, const BFloat16* w, const float* bias, BFloat16* out, int64_t M,
                   int64_t N, int64_t K) {
  for_rows(M, [&](int64_t first, int64_t last) {
    multiply(x + first * K, w, nullptr, bias, out + first * N, last - first, N, K);
  });
}

void gemm_bfloat16(const BFloat16* x, const UnpackBFloat16& w, const float* bias, BFloat16* out, int64_t M,
                   int64_t N, int64_t K) {
  multiply(x, nullptr, &w, bias, out, M, N, K);  // unpacked once for all rows
}

bool has_gated_mlp_bfloat16(int64_t rows, int64_t D, int64_t M) {
  return has_gemm_bfloat16() && rows >= kPanelRows && D <= 2 * kCached / kMostRows && M % kBlockRows == 0;
}

void gated_mlp_bfloat16(const BFloat16* x, const BFloat16* in, const float* in_bias, const BFloat16* w_out,
                        const float* out_bias, BFloat16* out, int64_t rows, int64_t D, int64_t M, int64_t N) {
  for_rows(rows, [&](int64_t first, int64_t last) {
    gated_mlp(x + first * D, in, in_bias, w_out, out_bias, out + first * N, last - first, D, M, N);
  });
}

#else

void gemm_bfloat16(const c10::BFloat16*, const c10::BFloat16*, const float*, c10::BFloat16*, int64_t, int64_t,
                   int64_t) {}

void gemm_bfloat16(const c10::BFloat16*, const UnpackBFloat16&, const float*, c10::BFloat16*, int64_t,
                   int64_t, int64_t) {}

bool has_gated_mlp_bfloat16(int64_t, int64_t, int64_t) {
  return false;
}

void gated_mlp_bfloat16(const c10::BFloat16*, const c10::BFloat16*, const float*, const c10::BFloat16*,
                        const float*, c10::BFloat16*, int64_t, int64_t, int64_t, int64_t) {}

#endif

}  // namespace introspect::ops

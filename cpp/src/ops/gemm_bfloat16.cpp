#include "ops/gemm_bfloat16.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "ops/bfloat16_kernels.h"
#include "ops/lines.h"

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
  Blocks(const Product& o, int64_t end, int64_t at_once)
      : o_(o), end_(end), width_(at_once * kStep), copy_(kBlockRows * width_) {
    in_place_ = reinterpret_cast<uintptr_t>(o.w) % 64 == 0 && o.K % kStep == 0;
  }

  BlockOperands at(int64_t block, int64_t step, int64_t steps) const {
    const int64_t n = block * kBlockRows, k = step * kStep, rows = std::min(kBlockRows, o_.N - n);
    BlockOperands out;
    out.panel_size = o_.panel_size();
    out.steps = steps;
    out.add = step > 0;
    const BFloat16* w = o_.w + n * o_.K + k;
    if (in_place_ && rows == kBlockRows) {
      out.w = reinterpret_cast<const char*>(w);
      out.row_bytes = 2 * o_.K;
      if (block + 1 < end_ && n + 2 * kBlockRows <= o_.N)
        out.next = reinterpret_cast<const char*>(w + kBlockRows * o_.K);
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
  int64_t end_, width_;
  bool in_place_;
  Lines<BFloat16> copy_;
};

/// The blocks [begin, end) of w times every panel.
template <typename Kernel>
INTROSPECT_AVX512_BFLOAT16 void multiply_blocks(const Product& o, int64_t begin, int64_t end) {
  [[maybe_unused]] const Kernel kernel{};
  // Two panels read w once, as it lies in memory. More read it part by part, so that the part stays in L1 meanwhile.
  const int64_t n_panels = o.n_panels(), steps = o.steps();
  const int64_t parts = n_panels > 2 ? (steps + kStepsAtOnce - 1) / kStepsAtOnce : 1;
  const int64_t at_once = (steps + parts - 1) / parts;
  const int64_t blocks_at_once = parts > 1 && o.panel_size() * n_panels > kCached ? kBlocksAtOnce : 1;
  const int64_t sums_of_block = parts > 1 ? round_up(n_panels, 2) * kSums : 0;  // 0: written at once
  const Lines<float> sums(std::max(2 * kSums, blocks_at_once * sums_of_block));
  Blocks blocks(o, end, at_once);
  for (int64_t group = begin; group < end; group += blocks_at_once) {
    for (int64_t step = 0; step < steps; step += at_once)
      for (int64_t b = group; b < std::min(end, group + blocks_at_once); ++b) {
        auto part = blocks.at(b, step, std::min(at_once, steps - step));
        for (int64_t p = 0; p < n_panels; p += 2) {
          const bool two = p + 1 < n_panels;
          part.panel = o.panels + p * o.panel_size() + step * kStep * kPanelRows;
          part.rows = std::min(kPanelRows, o.rows - (p + two) * kPanelRows);
          float* to = sums.get() + (b - group) * sums_of_block + (sums_of_block ? p * kSums : 0);
          if (two)
            Kernel::template multiply<2>(part, to);
          else
            Kernel::template multiply<1>(part, to);
          part.next = nullptr;
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

void sweep(const Product& o) {
  const int64_t block_bytes = 2 * kBlockRows * o.K, block_flops = 2 * kBlockRows * o.K * o.rows;
  const int64_t grain =
      std::max<int64_t>(1, std::min(kBytesPerTask / block_bytes, kFlopsPerTask / block_flops));
  auto* blocks = o.unpack ? multiply_unpacked<ByPairs> : multiply_blocks<ByPairs>;
#if INTROSPECT_AMX_KERNELS
  if (bfloat16_products() == "tiles")
    blocks = o.unpack ? multiply_unpacked<ByTiles> : multiply_blocks<ByTiles>;
#endif
  parallel_for(0, (o.N + kBlockRows - 1) / kBlockRows, grain,
               [&](int64_t begin, int64_t end) { blocks(o, begin, end); });
}

void multiply(const BFloat16* x, const BFloat16* w, const UnpackBFloat16* unpack, const float* bias,
              BFloat16* out, int64_t M, int64_t N, int64_t K) {
  const int64_t width = round_up(K, kStep);
  const int64_t cached = kCached / width / (2 * kPanelRows) * (2 * kPanelRows);
  const int64_t most = unpack || cached < kMostRows / 2 ? kMostRows : std::min(kMostRows, cached);
  const int64_t n_sweeps = std::max<int64_t>(1, (M + most - 1) / most);
  const int64_t each = round_up((M + n_sweeps - 1) / n_sweeps, 2 * kPanelRows);  // of about one size
  const Lines<BFloat16> panels(round_up(std::min(M, each), kPanelRows) * width);
  for (int64_t m = 0; m < M; m += each) {
    const int64_t rows = std::min(each, M - m);
    const int64_t n_panels = (rows + kPanelRows - 1) / kPanelRows;
    const int64_t grain = std::max<int64_t>(1, kBytesPerTask / (2 * width * kPanelRows));
    parallel_for(0, n_panels, grain,
                 [&](int64_t begin, int64_t end) { pack(x + m * K, panels.get(), rows, K, begin, end); });
    sweep({panels.get(), w, bias, out + m * N, rows, N, K, unpack});
  }
}

}  // namespace

void gemm_bfloat16(const BFloat16* x, const BFloat16* w, const float* bias, BFloat16* out, int64_t M,
                   int64_t N, int64_t K) {
  multiply(x, w, nullptr, bias, out, M, N, K);
}

void gemm_bfloat16(const BFloat16* x, const UnpackBFloat16& w, const float* bias, BFloat16* out, int64_t M,
                   int64_t N, int64_t K) {
  multiply(x, nullptr, &w, bias, out, M, N, K);
}

#else

void gemm_bfloat16(const c10::BFloat16*, const c10::BFloat16*, const float*, c10::BFloat16*, int64_t, int64_t,
                   int64_t) {}

void gemm_bfloat16(const c10::BFloat16*, const UnpackBFloat16&, const float*, c10::BFloat16*, int64_t,
                   int64_t, int64_t) {}

#endif

}  // namespace introspect::ops

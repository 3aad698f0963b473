#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include <ATen/ATen.h>

#include "introspect/ops/linear.h"
#include "introspect/ops/sparse_rows.h"

#include "core/parallel.h"
#include "ops/few_rows.h"
#include "ops/gemm.h"
#include "ops/vector.h"

namespace introspect::ops {

/// (x W^T + b) scale, a tile at a time.
template <typename T>
class Tiles {
  static constexpr int64_t kRows = 512;           // one sweep of gemm_rows over the weights
  static constexpr int64_t kNumbers = 5 << 19;    // of p: 10 MB of float32, which stay in L3
  static constexpr int64_t kScanGrain = 1 << 15;  // numbers that are worth a thread

 public:
  Tiles(const torch::Tensor& x_ND, const LinearRows& linear)
      : x_ND_(x_ND.to(c10::CppTypeToScalarType<T>::value).contiguous()),
        W_FD_(linear.W_FD.contiguous()),
        b_F_(linear.b_F.defined() ? linear.b_F.to(x_ND_.scalar_type()).contiguous() : linear.b_F),
        scale_F_(linear.scale_F.defined() ? linear.scale_F.to(x_ND_.scalar_type()) : linear.scale_F) {
    rows_ = std::max<int64_t>(1, std::min(kRows, N()));
    const int64_t blocks = (rows_ * F() + kNumbers - 1) / kNumbers;
    columns_ = std::max<int64_t>(1, (F() + blocks - 1) / std::max<int64_t>(1, blocks));
    p_ = at::empty({rows_ * columns_}, x_ND_.options());
  }

  int64_t N() const { return x_ND_.size(0); }
  int64_t F() const { return W_FD_.size(0); }
  int64_t rows() const { return rows_; }

  /// visit(row within the tile, p of its columns, the first column, how many) for all of the rows from `row` on, by
  /// several threads at once, the columns of a row in order; after_block() once all rows had the same columns.
  template <typename Visit, typename AfterBlock>
  void of_rows(int64_t row, int64_t rows, const Visit& visit, const AfterBlock& after_block) {
    for (int64_t first = 0; first < F(); first += columns_) {
      const int64_t columns = std::min(columns_, F() - first);
      multiply(row, rows, first, columns);
      const T* p = p_.template const_data_ptr<T>();
      parallel_for(0, rows, std::max<int64_t>(1, kScanGrain / columns), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) visit(r, p + r * columns, first, columns);
      });
      after_block();
    }
  }

 private:
  void multiply(int64_t row, int64_t rows, int64_t first, int64_t columns) {
    const auto x = x_ND_.narrow(0, row, rows), W = W_FD_.narrow(0, first, columns);
    auto p = p_.narrow(0, 0, rows * columns).view({rows, columns});
    bool has_bias = false;
    if (std::is_same_v<T, float> && N() <= kFewRows) {
      p.copy_(linear_fp32(x, W));
    } else if (std::is_same_v<T, float> && has_gemm_rows() && W.scalar_type() != torch::kFloat16) {
      const float* bias = b_F_.defined() ? b_F_.template const_data_ptr<float>() + first : nullptr;
      has_bias = true;
      if (W.scalar_type() == torch::kBFloat16)
        gemm_rows(x.template const_data_ptr<float>(), W.template const_data_ptr<c10::BFloat16>(), bias,
                  p.template mutable_data_ptr<float>(), rows, columns, x.size(1));
      else
        gemm_rows(x.template const_data_ptr<float>(), W.template const_data_ptr<float>(), bias,
                  p.template mutable_data_ptr<float>(), rows, columns, x.size(1));
    } else {
      at::mm_out(p, x, W.to(x.scalar_type()).t());
    }
    if (b_F_.defined() && !has_bias) p.add_(b_F_.narrow(0, first, columns));
    if (scale_F_.defined()) p.mul_(scale_F_.narrow(0, first, columns));
  }

  torch::Tensor x_ND_, W_FD_, b_F_, scale_F_, p_;
  int64_t rows_, columns_;
};

/// One threshold for all columns, which may change in between.
template <typename T>
struct OneLimit {
  const T& limit;
  T operator[](int64_t) const { return limit; }
  template <typename V>
  INTROSPECT_INLINE typename V::Floats lanes(int64_t) const {
    return typename V::Floats{} + limit;
  }
};

/// One of each column.
template <typename T>
struct OwnLimits {
  const T* limits;
  T operator[](int64_t c) const { return limits[c]; }
  template <typename V>
  INTROSPECT_INLINE typename V::Floats lanes(int64_t c) const {
    return V::load(limits + c);
  }
};

template <Rank rank, typename V>
INTROSPECT_INLINE typename V::Floats keys(const typename V::Floats& p) {
  if constexpr (rank != Rank::magnitude) return p;
  typename V::Words bits;
  std::memcpy(&bits, &p, sizeof bits);
  bits &= 0x7fffffffu;
  typename V::Floats out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

template <typename Mask>
INTROSPECT_INLINE bool any(const Mask& mask) {
  uint64_t words[sizeof(Mask) / 8], all = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (const auto word : words) all |= word;
  return all != 0;
}

/// take(column, p) for the p [n] that are not at most their limit, in order. A comparison of four vectors tells whether
/// there is one among them: mostly there is none.
template <Rank rank, typename V, typename T, typename Limit, typename Take>
INTROSPECT_INLINE void scan(const T* p, int64_t n, const Limit& limit, const Take& take) {
  int64_t c = 0;
  if constexpr (std::is_same_v<T, float>) {
    constexpr int64_t step = 4 * V::width;
    for (; c + step <= n; c += step) {
      auto none = keys<rank, V>(V::load(p + c)) <= limit.template lanes<V>(c);
      for (int64_t u = V::width; u < step; u += V::width)
        none &= keys<rank, V>(V::load(p + c + u)) <= limit.template lanes<V>(c + u);
      if (!any(~none)) continue;
      for (int64_t i = c; i < c + step; ++i)
        if (!((rank == Rank::magnitude ? std::abs(p[i]) : p[i]) <= limit[i])) take(i, p[i]);
    }
  }
  for (; c < n; ++c)
    if (!((rank == Rank::magnitude ? std::abs(p[c]) : p[c]) <= limit[c])) take(c, p[c]);
}

}  // namespace introspect::ops

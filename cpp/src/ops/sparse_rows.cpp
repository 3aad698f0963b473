#include "introspect/ops/sparse_rows.h"

#include <algorithm>
#include <stdexcept>

#include <ATen/ATen.h>

#include "core/dense.h"
#include "core/parallel.h"
#include "ops/vector.h"

namespace introspect::ops {

namespace {

constexpr int64_t kFlopsPerTask = 1 << 17;

/// y[d] += sum_e c[e] w[index[e], d], four rows a sweep over y.
template <typename V, typename W>
INTROSPECT_INLINE void add_weighted(float* y, const W* w, int64_t D, const int64_t* index, const float* c,
                                    int64_t n) {
  int64_t e = 0;
  for (; e + 4 <= n; e += 4) {
    const W *a = w + index[e] * D, *b = w + index[e + 1] * D, *s = w + index[e + 2] * D,
            *t = w + index[e + 3] * D;
    int64_t d = 0;
    for (; d + V::width <= D; d += V::width)
      V::store(y + d, V::load(y + d) + (V::load(a + d) * c[e] + V::load(b + d) * c[e + 1]) +
                          (V::load(s + d) * c[e + 2] + V::load(t + d) * c[e + 3]));
    for (; d < D; ++d)
      y[d] += (static_cast<float>(a[d]) * c[e] + static_cast<float>(b[d]) * c[e + 1]) +
              (static_cast<float>(s[d]) * c[e + 2] + static_cast<float>(t[d]) * c[e + 3]);
  }
  for (; e < n; ++e) {
    const W* a = w + index[e] * D;
    int64_t d = 0;
    for (; d + V::width <= D; d += V::width) V::store(y + d, V::load(y + d) + V::load(a + d) * c[e]);
    for (; d < D; ++d) y[d] += static_cast<float>(a[d]) * c[e];
  }
}

/// x . w of D elements.
template <typename V, typename W>
INTROSPECT_INLINE float dot(const float* x, const W* w, int64_t D) {
  typename V::Floats acc[4] = {};
  int64_t d = 0;
  for (; d + 4 * V::width <= D; d += 4 * V::width)
    for (int64_t u = 0; u < 4; ++u) acc[u] += V::load(x + d + u * V::width) * V::load(w + d + u * V::width);
  for (; d + V::width <= D; d += V::width) acc[0] += V::load(x + d) * V::load(w + d);
  float total = V::sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
  for (; d < D; ++d) total += x[d] * static_cast<float>(w[d]);
  return total;
}

// The same one element at a time, for float64, and for float16, which Lanes does not load.
template <typename T, typename W>
void add_weighted_plain(T* y, const W* w, int64_t D, const int64_t* index, const T* c, int64_t n) {
  for (int64_t e = 0; e < n; ++e)
    for (int64_t d = 0; d < D; ++d) y[d] += static_cast<T>(w[index[e] * D + d]) * c[e];
}

template <typename T, typename W>
T dot_plain(const T* x, const W* w, int64_t D) {
  T total = 0;
  for (int64_t d = 0; d < D; ++d) total += x[d] * static_cast<T>(w[d]);
  return total;
}

template <typename W>
constexpr bool has_lanes = std::is_same_v<W, float> || std::is_same_v<W, c10::BFloat16>;

torch::ScalarType summed_in(torch::ScalarType dtype) {
  return dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}

/// body(T{}, w), T what is summed in, w the elements of W [F, D].
template <typename Body>
void with_elements(const torch::Tensor& W_FD, const Body& body) {
  switch (W_FD.scalar_type()) {
    case torch::kFloat32:
      return body(float{}, W_FD.const_data_ptr<float>());
    case torch::kBFloat16:
      return body(float{}, W_FD.const_data_ptr<c10::BFloat16>());
    case torch::kFloat16:
      return body(float{}, W_FD.const_data_ptr<c10::Half>());
    default:
      return body(double{}, W_FD.const_data_ptr<double>());
  }
}

void check_matrix(const torch::Tensor& t, const char* who, const char* what) {
  check_dense<ShapeError>(t, who, ": ", what);
  check<ShapeError>(
      t.dim() == 2 && t.is_cpu() && at::isFloatingType(t.scalar_type()) && t.element_size() >= 2, who, ": ",
      what, " must be a matrix of floating dtype on the CPU, got ", t.scalar_type(), " ", t.sizes(), " on ",
      t.device());
}

/// Throws unless the entries are those of a matrix with `columns` columns.
void check_entries(const SparseRows& f, int64_t columns, bool with_values, const char* who) {
  for (const auto& [t, what] : {std::pair{f.offsets, "offsets"}, {f.indices, "indices"}}) {
    check_dense<ShapeError>(t, who, ": ", what);
    check<ShapeError>(t.dim() == 1 && t.scalar_type() == torch::kInt64 && t.is_cpu() && t.is_contiguous(),
                      who, ": ", what, " must be contiguous int64 of one dimension on the CPU, got ",
                      t.scalar_type(), " ", t.sizes());
  }
  const int64_t E = f.indices.numel(), n = f.offsets.numel();
  const auto* offsets = f.offsets.const_data_ptr<int64_t>();
  check<ShapeError>(n > 0 && offsets[0] == 0 && std::is_sorted(offsets, offsets + n) && offsets[n - 1] == E,
                    who, ": offsets must rise from 0 to the number of indices, ", E);
  if (with_values) {
    check_dense<ShapeError>(f.values, who, ": values");
    check<ShapeError>(f.values.dim() == 1 && f.values.numel() == E && f.values.is_cpu(), who,
                      ": values must be [", E, "] on the CPU, got ", f.values.sizes());
  }
  const auto* indices = f.indices.const_data_ptr<int64_t>();
  const auto* wrong = std::find_if(indices, indices + E, [&](int64_t i) { return i < 0 || i >= columns; });
  check<std::out_of_range>(wrong == indices + E, who, ": indices must be from 0 to ", columns - 1, ", got ",
                           wrong == indices + E ? 0 : *wrong);
}

}  // namespace

torch::Tensor gather_decode(const SparseRows& f, const torch::Tensor& W_FD) {
  check_matrix(W_FD, "gather_decode", "W");
  check_entries(f, W_FD.size(0), true, "gather_decode");
  const at::NoGradGuard no_grad;
  const auto W = W_FD.contiguous();
  const int64_t N = f.rows(), D = W.size(1);
  const auto type = summed_in(W.scalar_type());
  const auto values = f.values.to(type).contiguous();
  auto y_ND = at::zeros({N, D}, W.options().dtype(type));
  const auto* offsets = f.offsets.const_data_ptr<int64_t>();
  const auto* indices = f.indices.const_data_ptr<int64_t>();
  const int64_t grain = std::max<int64_t>(1, kFlopsPerTask * N / std::max<int64_t>(1, 2 * offsets[N] * D));
  with_elements(W, [&]<typename T, typename E>(T, const E* w) {
    const T* c = values.template const_data_ptr<T>();
    T* y = y_ND.template mutable_data_ptr<T>();
    parallel_for(0, N, grain, [&](int64_t first, int64_t last) {
      if constexpr (has_lanes<E>) {
        with_lanes([&](auto lanes) INTROSPECT_INLINED {
          for (int64_t n = first; n < last; ++n)
            add_weighted<decltype(lanes)>(y + n * D, w, D, indices + offsets[n], c + offsets[n],
                                          offsets[n + 1] - offsets[n]);
        });
      } else {
        for (int64_t n = first; n < last; ++n)
          add_weighted_plain(y + n * D, w, D, indices + offsets[n], c + offsets[n],
                             offsets[n + 1] - offsets[n]);
      }
    });
  });
  return y_ND;
}

torch::Tensor dot_rows(const torch::Tensor& g_ND, const torch::Tensor& W_FD, const SparseRows& at) {
  check_matrix(W_FD, "dot_rows", "W");
  check_matrix(g_ND, "dot_rows", "g");
  check_entries(at, W_FD.size(0), false, "dot_rows");
  check<ShapeError>(g_ND.size(0) == at.rows() && g_ND.size(1) == W_FD.size(1), "dot_rows: g must be [",
                    at.rows(), ", ", W_FD.size(1), "], got ", g_ND.sizes());
  const at::NoGradGuard no_grad;
  const auto W = W_FD.contiguous();
  const int64_t N = at.rows(), D = W.size(1);
  const auto g = g_ND.to(summed_in(W.scalar_type())).contiguous();
  auto out_E = at::empty({at.indices.numel()}, g.options());
  const auto* offsets = at.offsets.const_data_ptr<int64_t>();
  const auto* indices = at.indices.const_data_ptr<int64_t>();
  const int64_t grain = std::max<int64_t>(1, kFlopsPerTask * N / std::max<int64_t>(1, 2 * offsets[N] * D));
  with_elements(W, [&]<typename T, typename E>(T, const E* w) {
    const T* x = g.template const_data_ptr<T>();
    T* out = out_E.template mutable_data_ptr<T>();
    parallel_for(0, N, grain, [&](int64_t first, int64_t last) {
      if constexpr (has_lanes<E>) {
        with_lanes([&](auto lanes) INTROSPECT_INLINED {
          for (int64_t n = first; n < last; ++n)
            for (int64_t e = offsets[n]; e < offsets[n + 1]; ++e)
              out[e] = dot<decltype(lanes)>(x + n * D, w + indices[e] * D, D);
        });
      } else {
        for (int64_t n = first; n < last; ++n)
          for (int64_t e = offsets[n]; e < offsets[n + 1]; ++e)
            out[e] = dot_plain(x + n * D, w + indices[e] * D, D);
      }
    });
  });
  return out_E.to(g_ND.scalar_type());
}

SparseColumns by_column(const SparseRows& f, int64_t F) {
  check_entries(f, F, false, "by_column");
  const int64_t N = f.rows(), E = f.indices.numel();
  SparseColumns out{at::zeros({F + 1}, torch::kInt64), at::empty({E}, torch::kInt64),
                    at::empty({E}, torch::kInt64)};
  const auto* offsets = f.offsets.const_data_ptr<int64_t>();
  const auto* indices = f.indices.const_data_ptr<int64_t>();
  auto* starts = out.offsets.mutable_data_ptr<int64_t>();
  auto* rows = out.rows.mutable_data_ptr<int64_t>();
  auto* entries = out.entries.mutable_data_ptr<int64_t>();
  for (int64_t e = 0; e < E; ++e) ++starts[indices[e] + 1];
  for (int64_t c = 0; c < F; ++c) starts[c + 1] += starts[c];
  std::vector<int64_t> next(starts, starts + F);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t e = offsets[n]; e < offsets[n + 1]; ++e) {
      const int64_t place = next[indices[e]]++;
      rows[place] = n;
      entries[place] = e;
    }
  return out;
}

void add_rows(const SparseColumns& at, const torch::Tensor& coefficients_E, const torch::Tensor& rows_ND,
              torch::Tensor& out_FD) {
  check_matrix(rows_ND, "add_rows", "rows");
  check_matrix(out_FD, "add_rows", "out");
  check_entries({at.offsets, at.rows, coefficients_E}, rows_ND.size(0), true, "add_rows");
  const int64_t E = at.rows.numel(), F = at.offsets.numel() - 1, D = rows_ND.size(1);
  const auto type = out_FD.scalar_type();
  check<ShapeError>(out_FD.is_contiguous() && out_FD.size(0) == F && out_FD.size(1) == D &&
                        (type == torch::kFloat32 || type == torch::kFloat64),
                    "add_rows: out must be contiguous [", F, ", ", D, "], float32 or float64, got ", type,
                    " ", out_FD.sizes());
  const at::NoGradGuard no_grad;
  const auto rows = rows_ND.to(type).contiguous();
  const auto coefficients = coefficients_E.to(type).index_select(0, at.entries);
  const auto* offsets = at.offsets.const_data_ptr<int64_t>();
  const auto* from = at.rows.const_data_ptr<int64_t>();
  // Shared out by entries, since some features have many: a thread takes the columns that begin in its piece.
  parallel_for(0, E, std::max<int64_t>(1, kFlopsPerTask / (2 * D)), [&](int64_t first, int64_t last) {
    const int64_t begin = std::lower_bound(offsets, offsets + F, first) - offsets;
    const int64_t end = std::lower_bound(offsets, offsets + F, last) - offsets;
    if (type == torch::kFloat32) {
      with_lanes([&](auto lanes) INTROSPECT_INLINED {
        for (int64_t c = begin; c < end; ++c)
          add_weighted<decltype(lanes)>(
              out_FD.mutable_data_ptr<float>() + c * D, rows.const_data_ptr<float>(), D, from + offsets[c],
              coefficients.const_data_ptr<float>() + offsets[c], offsets[c + 1] - offsets[c]);
      });
    } else {
      for (int64_t c = begin; c < end; ++c)
        add_weighted_plain(out_FD.mutable_data_ptr<double>() + c * D, rows.const_data_ptr<double>(), D,
                           from + offsets[c], coefficients.const_data_ptr<double>() + offsets[c],
                           offsets[c + 1] - offsets[c]);
    }
  });
}

}  // namespace introspect::ops

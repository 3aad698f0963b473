#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "introspect/sae/dictionary.h"

#include "core/dense.h"
#include "core/parallel.h"

namespace introspect::sae {

namespace {

constexpr int64_t kNumbersPerTask = 1 << 16;

template <typename Body>
void with_floats(torch::ScalarType dtype, const Body& body) {
  AT_DISPATCH_FLOATING_TYPES_AND2(torch::kBFloat16, torch::kFloat16, dtype, "SparseFeatures",
                                  [&] { body(scalar_t{}); });
}

}  // namespace

torch::Tensor SparseFeatures::dense() const {
  const int64_t N = rows(), F = d_sae;
  auto f_NF = at::zeros({N, F}, values.options());
  if (!values.is_cpu()) {
    const auto counts = offsets.slice(0, 1) - offsets.slice(0, 0, -1);
    const auto row = at::repeat_interleave(at::arange(N, counts.options()), counts);
    return f_NF.index_put_({row, indices}, values);
  }
  const auto* starts = offsets.const_data_ptr<int64_t>();
  const auto* columns = indices.const_data_ptr<int64_t>();
  with_floats(values.scalar_type(), [&]<typename T>(T) {
    const T* from = values.const_data_ptr<T>();
    T* to = f_NF.mutable_data_ptr<T>();
    for (int64_t n = 0; n < N; ++n)
      for (int64_t e = starts[n]; e < starts[n + 1]; ++e) to[n * F + columns[e]] = from[e];
  });
  return f_NF;
}

SparseFeatures SparseFeatures::of(const torch::Tensor& f_NF) {
  check_dense<ShapeError>(f_NF, "SparseFeatures: f");
  check<ShapeError>(f_NF.dim() == 2, "SparseFeatures: f must be [N, F], got ", f_NF.sizes());
  const at::NoGradGuard no_grad;
  const int64_t N = f_NF.size(0), F = f_NF.size(1);
  if (!f_NF.is_cpu()) {
    const auto at_E2 = f_NF.nonzero();
    const auto row = at_E2.select(1, 0), column = at_E2.select(1, 1).contiguous();
    const auto counts = at::bincount(row, {}, N);
    return {
        {at::cat({at::zeros({1}, counts.options()), counts.cumsum(0)}), column, f_NF.index({row, column})},
        F};
  }
  const auto f = f_NF.detach().contiguous();
  SparseFeatures out;
  out.d_sae = F;
  out.offsets = at::zeros({N + 1}, torch::kInt64);
  auto* starts = out.offsets.mutable_data_ptr<int64_t>();
  const int64_t grain = std::max<int64_t>(1, kNumbersPerTask / std::max<int64_t>(1, F));
  with_floats(f.scalar_type(), [&]<typename T>(T) {
    const T* from = f.const_data_ptr<T>();
    parallel_for(0, N, grain, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n)
        starts[n + 1] = std::count_if(from + n * F, from + (n + 1) * F, [](T v) { return v != T(0); });
    });
    for (int64_t n = 0; n < N; ++n) starts[n + 1] += starts[n];
    out.indices = at::empty({starts[N]}, torch::kInt64);
    out.values = at::empty({starts[N]}, f.options());
    auto* columns = out.indices.mutable_data_ptr<int64_t>();
    T* to = out.values.mutable_data_ptr<T>();
    parallel_for(0, N, grain, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n) {
        int64_t e = starts[n];
        for (int64_t c = 0; c < F; ++c) {
          const T v = from[n * F + c];
          if (v == T(0)) continue;
          columns[e] = c;
          to[e++] = v;
        }
      }
    });
  });
  return out;
}

}  // namespace introspect::sae

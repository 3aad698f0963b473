#include "sae/training/entries.h"

#include <utility>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "core/parallel.h"
#include "ops/vector.h"

namespace introspect::sae::training {
namespace {

constexpr int64_t kGrain = 16;  // rows that a thread takes at least

torch::Tensor offsets_of(const torch::Tensor& rows, int64_t N) {
  return at::cat({at::zeros({1}, torch::kInt64), at::bincount(rows, {}, N).cumsum(0)});
}

template <typename T>
INTROSPECT_INLINE int64_t count_above(const T* p, const T* lower, int64_t F) {
  int32_t count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t i = 0; i < F; ++i) count += p[i] > lower[i] ? 1 : 0;
  return count;
}

/// How many places of each row are above, as offsets [N + 1].
template <typename T>
void count_rows(const T* p, const T* lower, int64_t N, int64_t F, int64_t* offsets) {
  parallel_for(0, N, kGrain, [&](int64_t first, int64_t last) {
    ops::with_lanes([&](auto) INTROSPECT_INLINED {
      for (int64_t n = first; n < last; ++n) offsets[n + 1] = count_above(p + n * F, lower, F);
    });
  });
  offsets[0] = 0;
  for (int64_t n = 0; n < N; ++n) offsets[n + 1] += offsets[n];
}

template <typename T>
void take_rows(const T* p, const T* lower, int64_t N, int64_t F, const int64_t* offsets, int64_t* indices,
               T* values) {
  parallel_for(0, N, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      auto e = offsets[n];
      for (int64_t i = 0; i < F; ++i) {
        if (!(p[n * F + i] > lower[i])) continue;
        indices[e] = i;
        values[e++] = p[n * F + i];
      }
    }
  });
}

}  // namespace

Entries Entries::all(torch::Tensor p_NF) {
  Entries out;
  out.F_ = p_NF.size(1);
  out.p_ = std::move(p_NF);
  return out;
}

Entries Entries::of(ops::SparseRows places, int64_t F) {
  Entries out;
  out.holds_all_ = false;
  out.F_ = F;
  out.p_ = std::exchange(places.values, {});
  out.places_ = std::move(places);
  const auto& offsets = out.places_.offsets;
  out.rows_ = at::repeat_interleave(at::arange(offsets.size(0) - 1, torch::kInt64),
                                    offsets.slice(0, 1) - offsets.slice(0, 0, -1), 0, out.p_.size(0));
  return out;
}

Entries Entries::above(const torch::Tensor& p_NF, const torch::Tensor& lower_F) {
  if (!p_NF.is_cpu()) return all(p_NF);
  const auto N = p_NF.size(0), F = p_NF.size(1);
  ops::SparseRows places{at::empty({N + 1}, torch::kInt64), {}, {}};
  auto* offsets = places.offsets.data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(p_NF.scalar_type(), "Entries::above", [&] {
    const auto *p = p_NF.const_data_ptr<scalar_t>(), *lower = lower_F.const_data_ptr<scalar_t>();
    count_rows(p, lower, N, F, offsets);
    if (offsets[N] * kSparse > N * F) return;
    places.indices = at::empty({offsets[N]}, torch::kInt64);
    places.values = at::empty({offsets[N]}, p_NF.options());
    take_rows(p, lower, N, F, offsets, places.indices.data_ptr<int64_t>(),
              places.values.data_ptr<scalar_t>());
  });
  return places.values.defined() ? of(std::move(places), F) : all(p_NF);
}

Entries Entries::largest(const torch::Tensor& c_ND, const torch::Tensor& W_FD, const torch::Tensor& b_F,
                         const Choice& choice) {
  const auto F = W_FD.size(0), N = c_ND.size(0), most = choice.of_batch ? N * F : F;
  const auto k = std::min(choice.k, most);
  if (c_ND.is_cpu() && k * kSparse <= most) {
    const ops::LinearRows linear{W_FD, b_F, choice.scale_F};
    auto out = of(
        choice.of_batch
            ? ops::topk_of_all_rows(c_ND, linear, k)
            : ops::topk_rows(c_ND, linear, k, choice.absolute ? ops::Rank::magnitude : ops::Rank::positive),
        F);
    if (choice.scale_F.defined()) out.p_ = out.p_ / out.by_feature(choice.scale_F);
    return out;
  }
  const auto p = at::linear(c_ND, W_FD, b_F);
  const auto ranked = choice.scale_F.defined() ? p * choice.scale_F : p;
  auto rank = choice.absolute ? ranked.abs() : at::relu(ranked);
  if (choice.of_batch) rank = rank.reshape({1, -1});
  const auto chosen = std::get<1>(rank.sort(/*stable=*/true, -1, /*descending=*/true))
                          .narrow(1, 0, k);  // of equal ones the first
  const auto mask = at::zeros_like(rank).scatter_(1, chosen, 1).mul_(rank > 0).reshape(p.sizes());
  return all(p * mask);
}

torch::Tensor Entries::masked(const torch::Tensor& v) const {
  return holds_all_ ? v * (p_ != 0).to(v.scalar_type()) : v;
}

torch::Tensor Entries::by_feature(const torch::Tensor& t_F) const {
  return holds_all_ ? t_F.unsqueeze(0) : t_F.index_select(0, places_.indices);
}

torch::Tensor Entries::by_row(const torch::Tensor& t_N) const {
  return holds_all_ ? t_N.unsqueeze(1) : t_N.index_select(0, rows_);
}

const ops::SparseColumns& Entries::columns() const {
  if (!columns_.offsets.defined()) columns_ = ops::by_column(places_, F_);
  return columns_;
}

torch::Tensor Entries::sum_of_features(const torch::Tensor& v) const {
  if (holds_all_) return v.sum(0);
  auto out = at::zeros({F_, 1}, v.options());
  ops::add_rows(columns(), v, at::ones({places_.rows(), 1}, v.options()), out);
  return out.squeeze(1);
}

torch::Tensor Entries::sum_of_rows(const torch::Tensor& v) const {
  if (holds_all_) return v.sum(1);
  return at::zeros({places_.rows()}, v.options()).index_add_(0, rows_, v);
}

torch::Tensor Entries::decode(const torch::Tensor& v, const torch::Tensor& W_FD) const {
  return holds_all_ ? at::mm(v, W_FD) : ops::gather_decode({places_.offsets, places_.indices, v}, W_FD);
}

torch::Tensor Entries::dots(const torch::Tensor& g_ND, const torch::Tensor& W_FD) const {
  return holds_all_ ? at::mm(g_ND, W_FD.t()) : ops::dot_rows(g_ND, W_FD, places_);
}

torch::Tensor Entries::outer(const torch::Tensor& v, const torch::Tensor& a_ND) const {
  if (holds_all_) return at::mm(v.t(), a_ND);
  auto out = at::zeros({F_, a_ND.size(1)}, v.options());
  ops::add_rows(columns(), v, a_ND, out);
  return out;
}

Entries Entries::within(int64_t first, int64_t last) const {
  if (holds_all_) return all(p_.narrow(1, first, last - first));
  const auto kept = ((places_.indices >= first) & (places_.indices < last)).nonzero().squeeze(1);
  return of({offsets_of(rows_.index_select(0, kept), places_.rows()),
             places_.indices.index_select(0, kept) - first, p_.index_select(0, kept)},
            last - first);
}

}  // namespace introspect::sae::training

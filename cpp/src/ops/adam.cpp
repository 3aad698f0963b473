#include "ops/adam.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "core/parallel.h"
#include "ops/vector.h"

namespace introspect::ops {
namespace {

constexpr int64_t kGrain = 1 << 14;  // weights that a thread takes at least

struct Rates {
  double beta1, beta2, eps, size, root_correction, scale;
};

template <typename T>
INTROSPECT_INLINE void update(T* __restrict w, const T* __restrict g, T* __restrict m, T* __restrict v,
                              int64_t n, const Rates& r) {
  const T beta1 = static_cast<T>(r.beta1), rest1 = static_cast<T>(1 - r.beta1),
          beta2 = static_cast<T>(r.beta2), rest2 = static_cast<T>(1 - r.beta2), eps = static_cast<T>(r.eps),
          size = static_cast<T>(r.size), root = static_cast<T>(r.root_correction),
          scale = static_cast<T>(r.scale);
  for (int64_t i = 0; i < n; ++i) {
    const T gi = g[i] * scale;
    m[i] = beta1 * m[i] + rest1 * gi;
    v[i] = beta2 * v[i] + rest2 * gi * gi;
    w[i] -= size * m[i] / (std::sqrt(v[i]) / root + eps);
  }
}

}  // namespace

void adam(const torch::Tensor& weight, const torch::Tensor& gradient, const torch::Tensor& first,
          const torch::Tensor& second, const AdamOptions& o, int64_t step, double scale) {
  const auto n = static_cast<double>(step);
  const Rates rates{
      o.beta1, o.beta2, o.eps, o.lr / (1 - std::pow(o.beta1, n)), std::sqrt(1 - std::pow(o.beta2, n)), scale};
  const auto g = gradient.contiguous();
  if (!weight.is_cpu()) {
    first.mul_(o.beta1).add_(g, (1 - o.beta1) * scale);
    second.mul_(o.beta2).addcmul_(g, g, (1 - o.beta2) * scale * scale);
    weight.addcdiv_(first, second.sqrt().div_(rates.root_correction).add_(o.eps), -rates.size);
    return;
  }
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "adam", [&] {
    auto *w = weight.data_ptr<scalar_t>(), *m = first.data_ptr<scalar_t>(), *v = second.data_ptr<scalar_t>();
    const auto* at_g = g.const_data_ptr<scalar_t>();
    parallel_for(0, weight.numel(), kGrain, [&](int64_t from, int64_t to) {
      with_lanes([&](auto) INTROSPECT_INLINED {
        update(w + from, at_g + from, m + from, v + from, to - from, rates);
      });
    });
  });
}

}  // namespace introspect::ops

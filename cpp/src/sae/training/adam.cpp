#include "sae/training/adam.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "core/parallel.h"
#include "ops/vector.h"

namespace introspect::sae::training {
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

double gradient_norm(const DictionaryWeights& gradient) {
  double sum = 0;
  for_each_weight(gradient, [&](const char*, const torch::Tensor& g) {
    if (!g.defined()) return;
    const auto norm = g.norm().item<double>();
    sum += norm * norm;
  });
  return std::sqrt(sum);
}

void adam(const DictionaryWeights& w, const DictionaryWeights& gradient, const DictionaryWeights& first,
          const DictionaryWeights& second, const TrainerOptions& o, int64_t step, double lr, double scale) {
  const auto n = static_cast<double>(step);
  const Rates rates{
      o.beta1, o.beta2, o.eps, lr / (1 - std::pow(o.beta1, n)), std::sqrt(1 - std::pow(o.beta2, n)), scale};
  const auto one = [&](torch::Tensor DictionaryWeights::* part) {
    const auto& weight = w.*part;
    if (!weight.defined()) return;
    const auto g = (gradient.*part).defined() ? (gradient.*part).contiguous() : at::zeros_like(weight);
    const auto &m = first.*part, &v = second.*part;
    if (!weight.is_cpu()) {
      m.mul_(o.beta1).add_(g, (1 - o.beta1) * scale);
      v.mul_(o.beta2).addcmul_(g, g, (1 - o.beta2) * scale * scale);
      weight.addcdiv_(m, v.sqrt().div_(rates.root_correction).add_(o.eps), -rates.size);
      return;
    }
    AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "adam", [&] {
      auto *at_w = weight.data_ptr<scalar_t>(), *at_m = m.data_ptr<scalar_t>(),
           *at_v = v.data_ptr<scalar_t>();
      const auto* at_g = g.const_data_ptr<scalar_t>();
      parallel_for(0, weight.numel(), kGrain, [&](int64_t from, int64_t to) {
        ops::with_lanes([&](auto) INTROSPECT_INLINED {
          update(at_w + from, at_g + from, at_m + from, at_v + from, to - from, rates);
        });
      });
    });
  };
  for (auto part :
       {&DictionaryWeights::W_enc_FD, &DictionaryWeights::b_enc_F, &DictionaryWeights::W_dec_FD,
        &DictionaryWeights::b_dec_D, &DictionaryWeights::threshold_F, &DictionaryWeights::b_gate_F,
        &DictionaryWeights::b_mag_F, &DictionaryWeights::r_mag_F, &DictionaryWeights::W_skip_DD})
    one(part);
}

double learning_rate(const TrainerOptions& o, int64_t step) {
  const auto t = static_cast<double>(step), warm = static_cast<double>(o.warm_up_steps),
             decay = static_cast<double>(o.decay_steps), total = static_cast<double>(o.total_steps);
  if (step < o.warm_up_steps) return o.lr * (t + 1) / warm;
  const bool cosine = o.schedule == LearningRateSchedule::cosine;
  const auto end = !cosine ? o.lr : o.lr_end > 0 ? o.lr_end : o.lr / 10;
  if (o.decay_steps > 0 && step >= o.total_steps - o.decay_steps)
    return end * std::max(0.0, (total - t) / decay);
  if (!cosine) return o.lr;
  const auto at = std::min(1.0, (t - warm) / std::max(1.0, total - warm - decay));
  return end + (o.lr - end) * (1 + std::cos(std::numbers::pi * at)) / 2;
}

}  // namespace introspect::sae::training

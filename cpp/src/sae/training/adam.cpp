#include "sae/training/adam.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <ATen/ATen.h>

#include "ops/adam.h"

namespace introspect::sae::training {

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
  const ops::AdamOptions rates{lr, o.beta1, o.beta2, o.eps};
  const auto one = [&](torch::Tensor DictionaryWeights::* part) {
    const auto& weight = w.*part;
    if (!weight.defined()) return;
    const auto& given = gradient.*part;
    ops::adam(weight, given.defined() ? given : at::zeros_like(weight), first.*part, second.*part, rates,
              step, scale);
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

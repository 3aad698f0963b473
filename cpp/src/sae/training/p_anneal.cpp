#include <ATen/ATen.h>

#include "sae/training/pass.h"

// L = SSE + a sum_i f_i^p (or its p-th root). p falls from 1 to p_end in anneal_updates equal steps of time, and at each a is
// multiplied by the ratio of the losses of the old p and the new one over the last 10 batches, so that the penalty goes on
// as large as it was. At p = 0 the sum is the number of active features.
// Karvonen et al. 2024, arXiv:2408.00113; as dictionary_learning's PAnnealTrainer.

namespace introspect::sae::training {

constexpr size_t kQueue = 10;

void p_anneal(Pass& pass, const Annealing& annealing) {
  const auto p_NF = pass.pre_activations();
  const auto at = Entries::above(p_NF, at::zeros({p_NF.size(1)}, p_NF.options()));
  const auto f = at::relu(at.p());
  auto gf = pass.reconstruct(at, f);
  const auto coefficient = pass.coefficient * annealing.factor;
  const bool root = !pass.options.anneal_power;
  pass.power = penalise(pass, at, f, {false, annealing.p, root}, coefficient, &gf);
  pass.sparsity_loss = coefficient * pass.power;
  if (annealing.updates > 0) pass.next_power = penalise(pass, at, f, {false, annealing.next_p, root});
  pass.encode_backward(at, gf * (f > 0).to(gf.scalar_type()));
}

void anneal(Annealing& annealing, int64_t step, const Pass& pass) {
  const auto& o = pass.options;
  const auto n = o.anneal_updates;
  if (annealing.updates > 0) {
    annealing.queue.emplace_back(pass.power, pass.next_power);
    if (annealing.queue.size() > kQueue) annealing.queue.erase(annealing.queue.begin());
  }
  if (annealing.updates >= n) return;
  const auto times = at::linspace(o.anneal_start, o.anneal_end > 0 ? o.anneal_end : o.total_steps, n,
                                  at::dtype(torch::kInt64));
  if (step != times[annealing.updates].item<int64_t>()) return;
  if (annealing.updates > 0) {
    double of_p = 0, of_next = 0;
    for (const auto& [now, next] : annealing.queue) of_p += now, of_next += next;
    if (of_next > 0) annealing.factor *= of_p / of_next;
  }
  const auto ps = at::linspace(1.0, o.p_end, n, at::dtype(torch::kFloat64));
  annealing.p = ps[annealing.updates].item<double>();
  annealing.next_p = annealing.updates < n - 1 ? ps[annealing.updates + 1].item<double>() : o.p_end;
  ++annealing.updates;
}

}  // namespace introspect::sae::training

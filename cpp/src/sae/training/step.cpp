#include "sae/training/step.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "sae/training/adam.h"

namespace introspect::sae::training {

namespace {

constexpr int64_t kWindow = 2000;  // steps that firing rates are counted over

bool is_unit(const TrainerOptions& o) {
  return o.unit_decoder || o.objective == Objective::matching_pursuit;
}

}  // namespace

Pass pass_of(const State& state, const Batch& batch) {
  const auto& o = state.options;
  Pass pass(o, state.w, state.sites_out());
  pass.x_ND = batch.x_ND;
  pass.y_ND = batch.y_ND;
  pass.weight_N = batch.weight_N;
  pass.dead = state.dead();
  const auto warm =
      o.sparsity_warm_up_steps > 0
          ? std::min(1.0, static_cast<double>(state.steps) / static_cast<double>(o.sparsity_warm_up_steps))
          : 1.0;
  pass.coefficient = warm * (o.objective == Objective::jumprelu ? o.l0_coefficient : o.l1_coefficient);
  return pass;
}

void run(Pass& pass, const Annealing& annealing) {
  switch (pass.options.objective) {
    case Objective::standard:
      standard(pass);
      break;
    case Objective::gated:
      gated(pass);
      break;
    case Objective::topk:
    case Objective::abstopk:
    case Objective::batchtopk:
      topk(pass);
      break;
    case Objective::matryoshka:
      matryoshka(pass);
      break;
    case Objective::jumprelu:
      jumprelu(pass);
      break;
    case Objective::p_anneal:
      p_anneal(pass, annealing);
      break;
    case Objective::matching_pursuit:
      matching_pursuit(pass);
      break;
  }
}

void project(Pass& pass) {
  if (!is_unit(pass.options) || !pass.options.project_gradient) return;
  const auto unit = pass.w.W_dec_FD / pass.w.W_dec_FD.norm(2, -1, true);
  auto& g = pass.gradient.W_dec_FD;
  g.sub_((g * unit).sum(-1, true) * unit);
}

void check_finite(const TrainerMetrics& metrics, const TrainerOptions& options, bool all_dead) {
  const auto advice =
      "; the trainer is as it was before this step. A lower lr, a clip or another input norm may help";
  check<Error>(std::isfinite(metrics.loss), "Trainer: step ", metrics.step, ": the loss is ", metrics.loss,
               advice);
  check<Error>(std::isfinite(metrics.gradient_norm), "Trainer: step ", metrics.step,
               ": the length of the gradient is ", metrics.gradient_norm, advice);
  check<Error>(!all_dead || metrics.l0 > 0, "Trainer: step ", metrics.step,
               ": every feature is dead: none was active in the last ", options.dead_window,
               " steps; less sparsity, a lower lr or b_dec_start may help");
}

double clip_scale(const TrainerOptions& options, double gradient_norm) {
  return options.clip > 0 ? std::min(1.0, options.clip / (gradient_norm + 1e-6)) : 1.0;
}

void update(State& state, const Pass& pass, double lr, double scale) {
  const auto& o = state.options;
  adam(state.w, pass.gradient, state.first, state.second, o, state.steps + 1, lr, scale);
  if (is_unit(o)) state.w.W_dec_FD.div_(state.w.W_dec_FD.norm(2, -1, true));
  if (state.w.threshold_F.defined()) state.w.threshold_F.clamp_min_(0);
  if (pass.has_chosen) state.threshold += o.threshold_lr * (pass.least_chosen - state.threshold);
  if (o.objective == Objective::p_anneal) anneal(state.annealing, state.steps, pass);

  state.since_fired.add_(1).masked_fill_(pass.fired_F > 0, 0);
  if (state.window_steps == kWindow) {
    state.fired_before = std::exchange(state.fired, at::zeros_like(state.fired));
    state.window_rows_before = std::exchange(state.window_rows, 0);
    state.window_steps = 0;
  }
  state.fired.add_(pass.fired_F);
  state.window_rows += pass.n_rows();
  ++state.window_steps;
  state.rows += pass.n_rows();
  ++state.steps;
}

std::unique_ptr<State> new_state(TrainerOptions options, DictionaryOrigin origin, int64_t d_in, int64_t d_out,
                                 const DictionaryWeights& w) {
  auto state = std::make_unique<State>();
  state->options = std::move(options);
  state->origin = std::move(origin);
  state->d_in = d_in;
  state->d_out = d_out;
  state->w = w;
  state->first = zeros_like(w);
  state->second = zeros_like(w);
  const auto F = state->options.d_sae;
  state->since_fired = at::zeros({F}, state->like().dtype(torch::kInt64));
  state->fired = at::zeros({F}, state->like().dtype(torch::kFloat64));
  state->fired_before = at::zeros_like(state->fired);
  return state;
}

DictionaryWeights zeros_like(const DictionaryWeights& w) {
  hooks::Operands::Tensors out;
  for (const auto& [name, tensor] : w.operands()) out[name] = at::zeros_like(tensor);
  return DictionaryWeights::from_operands(out);
}

void take_weights(DictionaryWeights& w, const DictionaryWeights& start) {
  const auto given = start.operands();
  for (const auto& [name, tensor] : given)
    check<ConfigError>(w.operands().contains(name), "Trainer: start has ", name,
                       ", which this objective does not have");
  for (const auto& [name, tensor] : w.operands()) {
    const auto& from = given.get(name);
    if (!from.defined()) continue;
    check<ShapeError>(from.sizes() == tensor.sizes(), "Trainer: start's ", name, " must be ", tensor.sizes(),
                      ", got ", from.sizes());
    check<std::invalid_argument>(at::isfinite(from).all().item<bool>(), "Trainer: start's ", name,
                                 " must be finite");
    torch::Tensor(tensor).copy_(from.detach());
  }
}

torch::Tensor firing_rates(const State& state) {
  const auto rows = state.window_rows + state.window_rows_before;
  return (state.fired + state.fired_before) / static_cast<double>(std::max<int64_t>(1, rows));
}

}  // namespace introspect::sae::training

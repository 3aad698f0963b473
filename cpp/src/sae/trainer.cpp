#include "introspect/sae/trainer.h"

#include <cmath>
#include <utility>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "sae/training/adam.h"
#include "sae/training/state.h"

namespace introspect::sae {

using training::Batch;
using training::Pass;
using training::State;

namespace {

constexpr int64_t kWindow = 2000;  // steps that firing rates are counted over

Pass run(const State& state, const Batch& batch) {
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
  switch (o.objective) {
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
      p_anneal(pass, state.annealing);
      break;
    case Objective::matching_pursuit:
      matching_pursuit(pass);
      break;
  }
  return pass;
}

TrainerMetrics metrics_of(const State& state, const Batch& batch, const Pass& pass) {
  const auto N = static_cast<double>(pass.n_rows());
  TrainerMetrics out;
  out.step = state.steps;
  out.rows = state.rows + pass.n_rows();
  out.mse = pass.mse;
  out.sparsity_loss = pass.sparsity_loss;
  out.aux_loss = pass.aux_loss;
  out.loss = pass.mse + pass.sparsity_loss + pass.aux_loss;
  out.l0 = pass.fired_F.sum().item<double>() / N;
  const auto variance = (batch.y_ND - batch.y_ND.mean(0)).square_().sum().item<double>();
  out.explained_variance = 1 - pass.residual_ND.square().sum().item<double>() / variance;
  out.dead_share = static_cast<double>(pass.dead.size(0)) / static_cast<double>(state.options.d_sae);
  out.gradient_norm = training::gradient_norm(pass.gradient);
  out.lr = training::learning_rate(state.options, state.steps);
  out.coefficient =
      pass.coefficient * (state.options.objective == Objective::p_anneal ? state.annealing.factor : 1);
  out.threshold = state.w.threshold_F.defined() ? state.w.threshold_F.mean().item<double>() : state.threshold;
  return out;
}

void check_finite(const State& state, const TrainerMetrics& metrics, const Pass& pass) {
  const auto advice =
      "; the trainer is as it was before this step. A lower lr, a clip or another input norm may help";
  check<Error>(std::isfinite(metrics.loss), "Trainer: step ", state.steps, ": the loss is ", metrics.loss,
               advice);
  check<Error>(std::isfinite(metrics.gradient_norm), "Trainer: step ", state.steps,
               ": the length of the gradient is ", metrics.gradient_norm, advice);
  check<Error>(pass.dead.size(0) < state.options.d_sae || metrics.l0 > 0, "Trainer: step ", state.steps,
               ": every feature is dead: none was active in the last ", state.options.dead_window,
               " steps; less sparsity, a lower lr or b_dec_start may help");
}

/// The part of W_dec's gradient along its rows, taken off.
void project(const DictionaryWeights& w, DictionaryWeights& gradient) {
  const auto unit = w.W_dec_FD / w.W_dec_FD.norm(2, -1, true);
  gradient.W_dec_FD.sub_((gradient.W_dec_FD * unit).sum(-1, true) * unit);
}

void count(State& state, const Pass& pass) {
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
}

void check_sites(const std::vector<DictionarySite>& sites, const char* what, int64_t width) {
  if (sites.empty()) return;
  int64_t sum = 0;
  for (const auto& site : sites) sum += site.width;
  check<ShapeError>(sum == width || (sites.size() == 1 && sites[0].width == 0), "Trainer: the ", what,
                    " of its origin are ", sum, " wide, not ", width);
}

std::unique_ptr<State> new_state(TrainerOptions options, DictionaryOrigin origin, int64_t d_in, int64_t d_out,
                                 const DictionaryWeights& w) {
  check_sites(origin.inputs, "inputs", d_in);
  check_sites(origin.outputs, "outputs", d_out);
  auto state = std::make_unique<State>();
  state->options = std::move(options);
  state->origin = std::move(origin);
  state->d_in = d_in;
  state->d_out = d_out;
  state->w = w;
  const auto zeros = [&] {
    hooks::Operands::Tensors out;
    for (const auto& [name, tensor] : w.operands()) out[name] = at::zeros_like(tensor);
    return DictionaryWeights::from_operands(out);
  };
  state->first = zeros();
  state->second = zeros();
  const auto F = state->options.d_sae;
  state->since_fired = at::zeros({F}, state->like().dtype(torch::kInt64));
  state->fired = at::zeros({F}, state->like().dtype(torch::kFloat64));
  state->fired_before = at::zeros_like(state->fired);
  return state;
}

}  // namespace

Trainer::Trainer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Trainer::~Trainer() = default;
Trainer::Trainer(Trainer&&) noexcept = default;
Trainer& Trainer::operator=(Trainer&&) noexcept = default;

Trainer::Trainer(TrainerOptions options, DictionaryOrigin origin, int64_t d_in, int64_t d_out,
                 torch::Device device) {
  options.check(d_in, d_out);
  const at::NoGradGuard no_grad;
  const auto w = training::first_weights(options, d_in, d_out, device);
  state_ = new_state(std::move(options), std::move(origin), d_in, d_out, w);
}

Trainer::Trainer(TrainerOptions options, DictionaryOrigin origin, const DictionaryWeights& start) {
  check<ShapeError>(start.W_dec_FD.defined() && start.W_dec_FD.dim() == 2,
                    "Trainer: start must have W_dec [d_sae, d_out]");
  const bool pursues = options.objective == Objective::matching_pursuit;
  check<ShapeError>(pursues || (start.W_enc_FD.defined() && start.W_enc_FD.dim() == 2),
                    "Trainer: start must have W_enc [d_sae, d_in]");
  const auto d_out = start.W_dec_FD.size(1), d_in = pursues ? d_out : start.W_enc_FD.size(1);
  check<ShapeError>(options.d_sae == 0 || options.d_sae == start.W_dec_FD.size(0), "Trainer: d_sae is ",
                    options.d_sae, " and start has ", start.W_dec_FD.size(0), " features");
  options.d_sae = start.W_dec_FD.size(0);
  options.check(d_in, d_out);
  const at::NoGradGuard no_grad;
  // Those that this objective has, each of its shape; a bias that is not given is 0, as it would start.
  const auto device = start.W_dec_FD.device();
  auto w = training::first_weights(options, d_in, d_out, device);
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
  state_ = new_state(std::move(options), std::move(origin), d_in, d_out, w);
  state_->has_given_weights = true;
}

const TrainerOptions& Trainer::options() const {
  return state_->options;
}
const DictionaryOrigin& Trainer::origin() const {
  return state_->origin;
}
int64_t Trainer::d_in() const {
  return state_->d_in;
}
int64_t Trainer::d_out() const {
  return state_->d_out;
}
int64_t Trainer::steps() const {
  return state_->steps;
}
torch::Tensor Trainer::steps_since_fired() const {
  return state_->since_fired.clone();
}

torch::Tensor Trainer::firing_rates() const {
  const auto rows = state_->window_rows + state_->window_rows_before;
  return (state_->fired + state_->fired_before) / static_cast<double>(std::max<int64_t>(1, rows));
}

DictionaryWeights Trainer::weights() const {
  return DictionaryWeights::from_operands(state_->w.operands().clone());
}

void Trainer::measure(const torch::Tensor& x_ND, const torch::Tensor& y_ND) {
  const at::NoGradGuard no_grad;
  training::measure(*state_, x_ND, y_ND);
}

TrainerMetrics Trainer::step(const torch::Tensor& x_ND, const torch::Tensor& y_ND) {
  const at::NoGradGuard no_grad;
  auto& state = *state_;
  const auto& o = state.options;
  training::start(state, x_ND, y_ND);
  const auto batch = training::batch_of(state, x_ND, y_ND);
  auto pass = run(state, batch);
  const bool unit = o.unit_decoder || o.objective == Objective::matching_pursuit;
  if (unit && o.project_gradient) project(state.w, pass.gradient);
  const auto metrics = metrics_of(state, batch, pass);
  check_finite(state, metrics, pass);

  // As torch.nn.utils.clip_grad_norm_.
  const auto clip = o.clip > 0 ? std::min(1.0, o.clip / (metrics.gradient_norm + 1e-6)) : 1.0;
  training::adam(state.w, pass.gradient, state.first, state.second, o, state.steps + 1, metrics.lr, clip);
  if (unit) state.w.W_dec_FD.div_(state.w.W_dec_FD.norm(2, -1, true));
  if (state.w.threshold_F.defined()) state.w.threshold_F.clamp_min_(0);
  if (pass.has_chosen) state.threshold += o.threshold_lr * (pass.least_chosen - state.threshold);
  if (o.objective == Objective::p_anneal) training::anneal(state.annealing, state.steps, pass);
  count(state, pass);
  ++state.steps;
  if (o.resample_every > 0 && state.steps % o.resample_every == 0)
    training::resample(state, batch, pass.residual_ND);
  return metrics;
}

std::pair<TrainerMetrics, std::map<std::string, torch::Tensor>> Trainer::gradients(
    const torch::Tensor& x_ND, const torch::Tensor& y_ND) const {
  const at::NoGradGuard no_grad;
  const auto batch = training::batch_of(*state_, x_ND, y_ND);
  const auto pass = run(*state_, batch);
  std::map<std::string, torch::Tensor> out;
  for (const auto& [name, tensor] : pass.gradient.operands()) out[name] = tensor.contiguous();
  for (const auto& [name, tensor] : state_->w.operands())
    if (!out.contains(name)) out[name] = at::zeros_like(tensor);
  return {metrics_of(*state_, batch, pass), std::move(out)};
}

}  // namespace introspect::sae

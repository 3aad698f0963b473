#include "introspect/sae/trainer.h"

#include <utility>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "sae/training/adam.h"
#include "sae/training/state.h"
#include "sae/training/step.h"

namespace introspect::sae {

using training::Batch;
using training::Pass;
using training::State;

namespace {

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

void check_sites(const std::vector<DictionarySite>& sites, const char* what, int64_t width) {
  if (sites.empty()) return;
  int64_t sum = 0;
  for (const auto& site : sites) sum += site.width;
  check<ShapeError>(sum == width || (sites.size() == 1 && sites[0].width == 0), "Trainer: the ", what,
                    " of its origin are ", sum, " wide, not ", width);
}

void check_origin(const DictionaryOrigin& origin, int64_t d_in, int64_t d_out) {
  check_sites(origin.inputs, "inputs", d_in);
  check_sites(origin.outputs, "outputs", d_out);
}

Pass run(const State& state, const Batch& batch) {
  auto pass = training::pass_of(state, batch);
  training::run(pass, state.annealing);
  return pass;
}

}  // namespace

Trainer::Trainer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Trainer::~Trainer() = default;
Trainer::Trainer(Trainer&&) noexcept = default;
Trainer& Trainer::operator=(Trainer&&) noexcept = default;

Trainer::Trainer(TrainerOptions options, DictionaryOrigin origin, int64_t d_in, int64_t d_out,
                 torch::Device device) {
  options.check(d_in, d_out);
  check_origin(origin, d_in, d_out);
  const at::NoGradGuard no_grad;
  const auto w = training::first_weights(options, d_in, d_out, device);
  state_ = training::new_state(std::move(options), std::move(origin), d_in, d_out, w);
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
  training::take_weights(w, start);
  check_origin(origin, d_in, d_out);
  state_ = training::new_state(std::move(options), std::move(origin), d_in, d_out, w);
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
  return training::firing_rates(*state_);
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
  training::project(pass);
  const auto metrics = metrics_of(state, batch, pass);
  training::check_finite(metrics, o, pass.dead.size(0) == o.d_sae);
  training::update(state, pass, metrics.lr, training::clip_scale(o, metrics.gradient_norm));
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

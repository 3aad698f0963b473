#include "introspect/analysis/tuned_lens.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>

#include <ATen/ATen.h>
#include <torch/autograd.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"

#include "analysis/lens_texts.h"

namespace introspect::analysis {
namespace {

using models::Model;
using Texts = std::vector<std::vector<int64_t>>;

constexpr int64_t kRegressionRows = 512;  // tokens that run at once
constexpr int64_t kTensors = 5;           // of the size of the logits, at a time

/// The translators of all layers as they are trained: one tensor of matrices, one of biases.
struct Parameters {
  torch::Tensor W_LDD, b_LD;  // b undefined without biases

  std::vector<torch::Tensor> all() const {
    return b_LD.defined() ? std::vector{W_LDD, b_LD} : std::vector{W_LDD};
  }
};

/// What the model's own predictions are read with.
struct Unembedding {
  torch::Tensor W_VD, b_V;
  nn::Norm norm;
  double cap;
};

Unembedding unembedding_of(const Model& model) {
  const auto dtype = lens_dtype(model);
  const auto& weights = model.weights();
  Unembedding out{weights.W_U.dense(dtype).detach(), weights.b_U, weights.ln_final,
                  model.cfg().output_logits_soft_cap};
  if (out.b_V.defined()) out.b_V = out.b_V.detach().to(dtype);
  out.norm.weight = out.norm.weight.detach().to(dtype);
  if (out.norm.bias.defined()) out.norm.bias = out.norm.bias.detach().to(dtype);
  return out;
}

torch::Tensor logits_of(const Unembedding& u, const torch::Tensor& y_ND) {
  auto out = at::linear(y_ND, u.W_VD);
  if (u.b_V.defined()) out.add_(u.b_V);
  if (u.cap > 0) out.div_(u.cap).tanh_().mul_(u.cap);
  return out;
}

/// What some tokens' model predicts: p [N, V], and sum p log p [N].
struct Target {
  torch::Tensor p_NV, negative_entropy_N;
};

Target target_of(const Unembedding& u, const torch::Tensor& resid_ND) {
  const auto log_p = logits_of(u, u.norm.apply(resid_ND)).log_softmax(-1);
  auto p = log_p.exp();
  auto negative_entropy = at::bmm(p.unsqueeze(1), log_p.unsqueeze(2)).flatten();
  return {std::move(p), std::move(negative_entropy)};
}

/// KL(p || softmax(logits of y)) of each row [N], and the gradient of `scale` times their sum by y [N, D].
std::pair<torch::Tensor, torch::Tensor> kl_and_gradient(const Unembedding& u, const torch::Tensor& y_ND,
                                                        const Target& target, double scale) {
  const auto logits = logits_of(u, y_ND);
  const auto expected = at::bmm(target.p_NV.unsqueeze(1), logits.unsqueeze(2)).flatten();
  auto kl = target.negative_entropy_N - expected + logits.logsumexp({-1});
  auto g = logits.softmax(-1).sub_(target.p_NV);
  if (u.cap > 0) g.mul_(logits.div(u.cap).square_().neg_().add_(1));  // through cap tanh(x / cap)
  return {std::move(kl), at::matmul(g, u.W_VD).mul_(scale)};
}

/// Adds the gradient of one layer's tokens to `gradient`; returns the sum of their KL.
double add_layer(const Unembedding& u, const Parameters& parameters, int64_t layer, const torch::Tensor& h_ND,
                 const Target& target, double scale, Parameters& gradient) {
  const auto bias = parameters.b_LD.defined() ? parameters.b_LD[layer] : torch::Tensor{};
  auto x = (h_ND + at::linear(h_ND, parameters.W_LDD[layer], bias)).detach().requires_grad_();
  torch::Tensor y;
  {
    const at::AutoGradMode with_gradients(true);
    y = u.norm.apply(x);
  }
  const auto [kl, gy] = kl_and_gradient(u, y.detach(), target, scale);
  const auto gx = torch::autograd::grad({y}, {x}, {gy})[0];
  gradient.W_LDD[layer].addmm_(gx.t(), h_ND);
  if (bias.defined()) gradient.b_LD[layer].add_(gx.sum(0));
  return kl.sum().item<double>();
}

/// torch's SGD with Nesterov momentum, or Adam with amsgrad, with the gradient clipped over all parameters.
class Optimizer {
 public:
  Optimizer(const TunedLensOptions& options, const Parameters& parameters) : options_(options) {
    for (const auto& x : parameters.all()) states_.push_back({at::zeros_like(x), {}, {}});
    if (options.optimizer == LensOptimizer::adam)
      for (auto& state : states_) {
        state.second = at::zeros_like(state.first);
        state.largest = at::zeros_like(state.first);
      }
  }

  void step(const Parameters& parameters, const Parameters& gradient) {
    const auto xs = parameters.all(), gs = gradient.all();
    double square = 0;
    for (const auto& g : gs) square += g.square().sum().item<double>();
    const double clip = std::min(1.0, options_.clip / (std::sqrt(square) + 1e-6));
    const double fall = 1.0 - static_cast<double>(n_++) / static_cast<double>(options_.steps);
    for (size_t i = 0; i < xs.size(); ++i) {
      auto g = gs[i] * clip + options_.weight_decay * xs[i];
      options_.optimizer == LensOptimizer::sgd ? sgd(xs[i], g, states_[i], fall)
                                               : adam(xs[i], g, states_[i], fall);
    }
  }

 private:
  struct State {
    torch::Tensor first, second, largest;
  };

  void sgd(torch::Tensor x, const torch::Tensor& g, State& state, double fall) const {
    const double m = options_.momentum;
    state.first.mul_(m).add_(g);
    x.sub_(g + m * state.first, options_.lr * (1 - m) * fall);
  }
  void adam(torch::Tensor x, const torch::Tensor& g, State& state, double fall) const {
    constexpr double kBeta2 = 0.999, kEps = 1e-8;
    const double beta1 = options_.momentum, n = static_cast<double>(n_);
    state.first.mul_(beta1).add_(g, 1 - beta1);
    state.second.mul_(kBeta2).addcmul_(g, g, 1 - kBeta2);
    at::maximum_out(state.largest, state.largest, state.second);
    const auto denominator = state.largest.sqrt().div_(std::sqrt(1 - std::pow(kBeta2, n))).add_(kEps);
    x.addcdiv_(state.first, denominator, -options_.lr * 1e-3 * fall / (1 - std::pow(beta1, n)));
  }

  const TunedLensOptions& options_;
  std::vector<State> states_;
  int64_t n_ = 0;
};

Parameters first_parameters(const Model& model, const TunedLensOptions& options) {
  const auto L = model.cfg().n_layers, D = model.cfg().d_model;
  const auto like = at::device(model.device()).dtype(lens_dtype(model));
  Parameters out{at::zeros({L, D, D}, like), options.bias ? at::zeros({L, D}, like) : torch::Tensor{}};
  if (!options.start) return out;
  options.start->check_model(model);
  check<std::invalid_argument>(options.start->kind() != LensKind::jacobian,
                               "train_tuned_lens: start must be a tuned lens, got a jacobian one");
  for (const auto& [layer, translator] : options.start->translators()) {
    check<std::invalid_argument>(options.bias || !translator.b.defined(),
                                 "train_tuned_lens: start has biases, and bias is false");
    out.W_LDD[layer + 1].copy_(translator.W);
    if (translator.b.defined()) out.b_LD[layer + 1].copy_(translator.b);
  }
  return out;
}

Lens as_lens(const Model& model, const Parameters& parameters, const nlohmann::json& notes) {
  LensOrigin origin{model.cfg().model_name, model.hash(),        unembedding_hash(model),
                    model.cfg().n_layers,   model.cfg().d_model, notes.dump()};
  std::map<int64_t, Translator> translators;
  const auto own = [](const torch::Tensor& x) { return x.to(torch::kCPU).clone(); };
  for (int64_t layer = 0; layer < origin.n_layers; ++layer)
    translators[layer - 1] = {own(parameters.W_LDD[layer]),
                              parameters.b_LD.defined() ? own(parameters.b_LD[layer]) : torch::Tensor{}};
  return {LensKind::tuned, std::move(origin), std::move(translators)};
}

void check_options(const TunedLensOptions& options) {
  constexpr auto kWho = "train_tuned_lens: ";
  check<std::invalid_argument>(options.steps >= 0, kWho, "steps must not be negative, got ", options.steps);
  check<std::invalid_argument>(options.tokens_per_step > 0, kWho, "tokens_per_step must be positive, got ",
                               options.tokens_per_step);
  check<std::invalid_argument>(options.memory_budget > 0, kWho, "memory_budget must be positive, got ",
                               options.memory_budget);
  const auto least = [&](const char* name, double value, bool also_zero) {
    check<std::invalid_argument>(std::isfinite(value) && (also_zero ? value >= 0 : value > 0), kWho, name,
                                 " must be ", also_zero ? "0 or more" : "positive", ", got ", value);
  };
  least("lr", options.lr, false);
  least("clip", options.clip, false);
  least("weight_decay", options.weight_decay, true);
  check<std::invalid_argument>(options.momentum >= 0 && options.momentum < 1, kWho,
                               "momentum must be 0 or more and less than 1, got ", options.momentum);
}

/// Pieces in random order, again and again.
class Order {
 public:
  Order(size_t n, uint64_t seed) : places_(n), random_(seed) {
    std::iota(places_.begin(), places_.end(), size_t{0});
  }

  size_t next() {
    if (at_ == 0) std::shuffle(places_.begin(), places_.end(), random_);
    const auto out = places_[at_];
    at_ = (at_ + 1) % places_.size();
    return out;
  }

 private:
  std::vector<size_t> places_;
  std::mt19937_64 random_;
  size_t at_ = 0;
};

}  // namespace

Lens train_tuned_lens(const Model& model, const Texts& texts, const TunedLensOptions& options) {
  check_options(options);
  const auto pieces = pieces_of(model, texts, options.context, "train_tuned_lens");
  const auto parameters = first_parameters(model, options);
  const auto unembedding = unembedding_of(model);
  const at::AutoGradMode without_gradients(false);
  const auto L = model.cfg().n_layers;
  const auto most_rows = std::max<int64_t>(
      1, options.memory_budget /
             (kTensors * static_cast<int64_t>(c10::elementSize(lens_dtype(model))) * model.cfg().d_vocab));
  Optimizer optimizer(options, parameters);
  Order order(pieces.size(), options.seed);
  torch::Tensor first_kl, last_kl;
  int64_t n_tokens = 0;
  for (int64_t step = 0; step < options.steps; ++step) {
    Texts taken;
    int64_t size = 0;
    for (; size < options.tokens_per_step; size += static_cast<int64_t>(taken.back().size()))
      taken.push_back(pieces[order.next()]);
    Parameters gradient{at::zeros_like(parameters.W_LDD),
                        options.bias ? at::zeros_like(parameters.b_LD) : torch::Tensor{}};
    auto kl_L = at::zeros({L}, torch::kFloat64);
    for (const auto& group : groups_of(std::move(taken), most_rows)) {
      const auto streams = residual_streams(model, group);
      for (int64_t row = 0; row < streams[0].size(0); row += most_rows) {
        const auto n = std::min(most_rows, streams[0].size(0) - row);
        const auto target = target_of(unembedding, streams.back().narrow(0, row, n));
        for (int64_t layer = 0; layer < L; ++layer) {
          report(options.progress, "training a tuned lens", step, options.steps);
          const auto h = streams[static_cast<size_t>(layer)].narrow(0, row, n);
          kl_L[layer] +=
              add_layer(unembedding, parameters, layer, h, target, 1.0 / static_cast<double>(size), gradient);
        }
      }
    }
    kl_L /= static_cast<double>(size);
    check<Error>(at::isfinite(kl_L).all().item<bool>(), "train_tuned_lens: step ", step,
                 ": the KL is not finite; a smaller lr may help, or the model's activations are not finite");
    optimizer.step(parameters, gradient);
    n_tokens += size;
    if (step == 0) first_kl = kl_L;
    last_kl = kl_L;
    if (options.on_step) options.on_step(step, kl_L);
  }
  report(options.progress, "training a tuned lens", options.steps, options.steps);
  nlohmann::json notes = {{"steps", options.steps},
                          {"tokens", n_tokens},
                          {"optimizer", options.optimizer == LensOptimizer::sgd ? "sgd" : "adam"},
                          {"lr", options.lr},
                          {"context", options.context},
                          {"seed", options.seed}};
  const auto list = [](const torch::Tensor& x) {
    return std::vector<double>(x.const_data_ptr<double>(), x.const_data_ptr<double>() + x.numel());
  };
  if (first_kl.defined()) notes["kl_of_first_step"] = list(first_kl);
  if (last_kl.defined()) notes["kl_of_last_step"] = list(last_kl);
  return as_lens(model, parameters, notes);
}

Lens regression_lens(const Model& model, const Texts& texts, double ridge, int64_t context, bool bias,
                     const Progress& progress) {
  check<std::invalid_argument>(std::isfinite(ridge) && ridge > 0,
                               "regression_lens: ridge must be positive, got ", ridge);
  const auto pieces = pieces_of(model, texts, context, "regression_lens");
  const at::AutoGradMode without_gradients(false);
  const auto L = model.cfg().n_layers, D = model.cfg().d_model, columns = D + (bias ? 1 : 0);
  const auto like = at::device(model.device()).dtype(torch::kFloat64);
  const auto squares = at::zeros({L, columns, columns}, like), products = at::zeros({L, columns, D}, like);
  int64_t n_tokens = 0, n_all = 0;
  for (const auto& piece : pieces) n_all += static_cast<int64_t>(piece.size());
  for (const auto& group : groups_of(pieces, kRegressionRows)) {
    report(progress, "regression of the last residual", n_tokens, n_all);
    const auto streams = residual_streams(model, group);
    n_tokens += streams[0].size(0);
    const auto weight = streams.back().square().mean({-1}, /*keepdim=*/true).clamp_min(1e-30).rsqrt();
    for (int64_t layer = 0; layer < L; ++layer) {
      const auto& h = streams[static_cast<size_t>(layer)];
      const auto x = (bias ? at::cat({h, at::ones_like(weight)}, 1) : h) * weight,
                 y = (streams.back() - h) * weight;
      squares[layer].add_(at::matmul(x.t(), x).to(torch::kFloat64));
      products[layer].add_(at::matmul(x.t(), y).to(torch::kFloat64));
    }
  }
  check<Error>(squares.isfinite().all().item<bool>() && products.isfinite().all().item<bool>(),
               "regression_lens: the residuals must be finite, and some of these texts' are not");
  const auto diagonal = squares.diagonal(0, 1, 2);
  diagonal.narrow(1, 0, D).add_(ridge *
                                diagonal.narrow(1, 0, D).mean({1}, /*keepdim=*/true).clamp_min(1e-30));
  const auto solution = at::cholesky_solve(products, at::linalg_cholesky(squares)).to(lens_dtype(model));
  const Parameters parameters{solution.narrow(1, 0, D).transpose(1, 2).contiguous(),
                              bias ? solution.select(1, D).contiguous() : torch::Tensor{}};
  return as_lens(model, parameters, {{"regression", true}, {"ridge", ridge}, {"tokens", n_tokens}});
}

}  // namespace introspect::analysis

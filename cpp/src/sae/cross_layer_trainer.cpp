#include "introspect/sae/cross_layer_trainer.h"

#include <cmath>
#include <functional>
#include <optional>
#include <utility>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"

#include "core/dense.h"
#include "sae/training/adam.h"
#include "sae/training/state_file.h"
#include "sae/training/step.h"

namespace introspect::sae {

namespace training {

/// A state for each layer, whose b_dec and skip are not its own, and those of all layers.
struct CrossLayerState {
  TrainerOptions options;
  DictionaryOrigin origin;
  int64_t d_in = 0, d_out = 0;
  std::vector<std::unique_ptr<State>> layers;  // layer l writes (L - l) d_out
  DictionaryWeights w, first, second;          // b_dec [L, D] and W_skip [L, D, d_in]
  bool has_given_weights = false, is_started = false;

  // InputNorm::scale: sums of lengths of each layer's rows
  std::vector<double> length_in, length_out;
  int64_t measured = 0;
  torch::Tensor scale_in_L, scale_out_L;  // undefined: not known yet

  int64_t n_layers() const { return static_cast<int64_t>(layers.size()); }
  torch::TensorOptions like() const { return w.b_dec_D.options(); }
};

}  // namespace training

using training::CrossLayerState;
using training::Pass;
using training::State;

namespace {

namespace fs = std::filesystem;

constexpr auto kFile = "cross_layer_trainer.safetensors", kFormat = "introspect.cross_layer_trainer.1";

void check_options(const TrainerOptions& o) {
  const bool known = o.objective == Objective::standard || o.objective == Objective::jumprelu ||
                     o.objective == Objective::topk || o.objective == Objective::abstopk ||
                     o.objective == Objective::batchtopk;
  check<ConfigError>(
      known, "CrossLayerTrainer: the objective must be standard, jumprelu, topk, abstopk or batchtopk");
  check<ConfigError>(o.input_norm == InputNorm::none || o.input_norm == InputNorm::scale,
                     "CrossLayerTrainer: the input norm must be none or expected_average_only_in, got ",
                     to_string(o.input_norm));
  check<ConfigError>(o.resample_every == 0, "CrossLayerTrainer: dead features cannot be resampled");
}

/// Options of the layers: transcoders without what is of the outputs.
TrainerOptions layer_options(const TrainerOptions& options, int64_t layer, int64_t L) {
  auto out = options;
  out.skip = false;
  out.seed = options.seed * static_cast<uint64_t>(L) + static_cast<uint64_t>(layer);
  return out;
}

DictionaryWeights layer_weights(const TrainerOptions& options, int64_t d_in, int64_t width,
                                torch::Device device) {
  auto w = training::first_weights(options, d_in, width, device);
  w.b_dec_D = torch::Tensor();
  return w;
}

DictionaryWeights output_weights(const TrainerOptions& o, int64_t L, int64_t d_in, int64_t D,
                                 torch::Device device) {
  const auto like = at::dtype(o.float64 ? torch::kFloat64 : torch::kFloat32).device(device);
  DictionaryWeights w;
  w.b_dec_D = at::zeros({L, D}, like);
  if (o.skip) w.W_skip_DD = at::zeros({L, D, d_in}, like);
  return w;
}

std::unique_ptr<CrossLayerState> new_state(TrainerOptions options, int64_t L, int64_t d_in, int64_t D,
                                           DictionaryOrigin origin, torch::Device device) {
  check<std::invalid_argument>(L >= 1, "CrossLayerTrainer: n_layers must be at least 1, got ", L);
  options.transcodes = true;
  options.subtract_b_dec = false;
  options.check(d_in, D);
  check_options(options);
  for (const auto& [sites, width] : {std::pair{&origin.inputs, d_in}, {&origin.outputs, D}}) {
    check<ConfigError>(sites->empty() || static_cast<int64_t>(sites->size()) == L,
                       "CrossLayerTrainer: a site of each of the ", L, " layers is required, or none, got ",
                       sites->size());
    for (const auto& site : *sites)
      check<ShapeError>(site.width == width, "CrossLayerTrainer: ", site.hook_name, " must be ", width,
                        " wide, got ", site.width);
  }
  auto out = std::make_unique<CrossLayerState>();
  out->d_in = d_in;
  out->d_out = D;
  for (int64_t l = 0; l < L; ++l) {
    const auto own = layer_options(options, l, L);
    const auto width = (L - l) * D;
    out->layers.push_back(training::new_state(own, {}, d_in, width, layer_weights(own, d_in, width, device)));
  }
  out->w = output_weights(options, L, d_in, D, device);
  out->first = training::zeros_like(out->w);
  out->second = training::zeros_like(out->w);
  out->options = std::move(options);
  out->origin = std::move(origin);
  return out;
}

/// [L, 1, 1], to be broadcast over rows.
torch::Tensor by_layer(const torch::Tensor& scale_L) {
  return scale_L.reshape({-1, 1, 1});
}

struct Batch {
  torch::Tensor x_LND, y_LND;
};

Batch batch_of(const CrossLayerState& s, const torch::Tensor& x, const torch::Tensor& y) {
  const auto rows = [&](const torch::Tensor& t, const char* what, int64_t width) {
    check_dense<ShapeError>(t, "CrossLayerTrainer: ", what);
    check<ShapeError>(t.dim() == 3 && t.size(0) == s.n_layers() && t.size(1) > 0 && t.size(2) == width &&
                          t.is_floating_point(),
                      "CrossLayerTrainer: ", what, " must be [", s.n_layers(), ", N, ", width,
                      "] of a floating dtype, got ", t.scalar_type(), " ", t.sizes());
    return t.detach().to(s.like()).contiguous();
  };
  Batch out{rows(x, "x", s.d_in), rows(y, "y", s.d_out)};
  check<ShapeError>(out.x_LND.size(1) == out.y_LND.size(1),
                    "CrossLayerTrainer: x and y must have as many rows, got ", out.x_LND.size(1), " and ",
                    out.y_LND.size(1));
  if (s.scale_in_L.defined()) {
    out.x_LND = out.x_LND * by_layer(s.scale_in_L);
    out.y_LND = out.y_LND * by_layer(s.scale_out_L);
  }
  return out;
}

void measure(CrossLayerState& s, const torch::Tensor& x, const torch::Tensor& y) {
  if (s.options.input_norm != InputNorm::scale || s.scale_in_L.defined()) return;
  const auto batch = batch_of(s, x, y);
  const auto add = [&](std::vector<double>& to, const torch::Tensor& rows_LND) {
    to.resize(static_cast<size_t>(s.n_layers()));
    const auto sums_L = rows_LND.norm(2, -1).sum(1, false, at::kDouble).to(torch::kCPU);
    for (size_t l = 0; l < to.size(); ++l) to[l] += sums_L[static_cast<int64_t>(l)].item<double>();
  };
  add(s.length_in, batch.x_LND);
  add(s.length_out, batch.y_LND);
  s.measured += batch.x_LND.size(1);
}

torch::Tensor scale_of(const CrossLayerState& s, const std::vector<double>& lengths, int64_t width) {
  const auto mean_L = torch::tensor(lengths, torch::kFloat64) / static_cast<double>(s.measured);
  check<Error>(
      (mean_L > 0).logical_and(at::isfinite(mean_L)).all().item<bool>(),
      "CrossLayerTrainer: the rows that were measured must have a mean length above 0 in each layer");
  return (std::sqrt(static_cast<double>(width)) / mean_L).to(s.like());
}

/// Gives the layers the scales that their dictionaries fold in.
void share_scales(CrossLayerState& s) {
  if (!s.scale_in_L.defined()) return;
  for (int64_t l = 0; l < s.n_layers(); ++l) {
    s.layers[l]->scale_in = s.scale_in_L[l].expand({s.d_in}).contiguous();
    s.layers[l]->scale_out = s.scale_out_L.slice(0, l).repeat_interleave(s.d_out);
  }
}

void start(CrossLayerState& s, const torch::Tensor& x, const torch::Tensor& y) {
  if (s.is_started) return;
  check<Error>(at::isfinite(x).all().item<bool>() && at::isfinite(y).all().item<bool>(),
               "CrossLayerTrainer: the first batch holds numbers that are not finite");
  if (s.options.input_norm == InputNorm::scale) {
    if (s.measured == 0) measure(s, x, y);
    s.scale_in_L = scale_of(s, s.length_in, s.d_in);
    s.scale_out_L = scale_of(s, s.length_out, s.d_out);
    share_scales(s);
  }
  const auto batch = batch_of(s, x, y);
  for (int64_t l = 0; l < s.n_layers() && !s.has_given_weights; ++l) {
    if (s.options.b_dec_start != BiasStart::zero)
      s.w.b_dec_D[l].copy_(training::first_bias(s.options.b_dec_start, batch.y_LND[l]));
    training::start_encoder_bias(*s.layers[l], batch.x_LND[l]);
  }
  for (auto& layer : s.layers) layer->is_started = true;
  s.is_started = true;
}

/// One batch through all layers and back.
struct Step {
  std::vector<std::unique_ptr<Pass>> passes;
  torch::Tensor residual_LND;  // y - y_hat
  DictionaryWeights gradient;  // b_dec, W_skip
  double mse = 0;
};

/// What the features of a layer write, [L - l, N, D] of [N, (L - l) D].
torch::Tensor outputs_of(const torch::Tensor& written_ND, int64_t D) {
  return written_ND.unflatten(1, {-1, D}).movedim(1, 0);
}

/// Each layer encodes, adds what it writes and waits for those above it; the last one's error goes back through all.
Step run(const CrossLayerState& s, const Batch& batch) {
  const auto L = s.n_layers(), N = batch.x_LND.size(1), D = s.d_out;
  Step step;
  auto y_hat_LND = s.w.b_dec_D.unsqueeze(1).expand({L, N, D}).clone();
  if (s.options.skip) y_hat_LND.baddbmm_(batch.x_LND, s.w.W_skip_DD.mT());
  torch::Tensor g_LND;  // of the loss by y_hat

  std::function<void(int64_t)> run_from = [&](int64_t l) {
    if (l == L) {
      step.residual_LND = batch.y_LND - y_hat_LND;
      const auto r = step.residual_LND.reshape({-1});
      step.mse = at::dot(r, r).item<double>() / static_cast<double>(N);
      g_LND = step.residual_LND * (-2.0 / static_cast<double>(N));
      return;
    }
    auto& pass = *step.passes[l];
    pass.shared = [&, l](Pass& of, const torch::Tensor& written_ND) {
      y_hat_LND.slice(0, l).add_(outputs_of(written_ND, D));
      run_from(l + 1);
      const auto side_by_side = [&](const torch::Tensor& t_LND) {
        return t_LND.slice(0, l).movedim(0, 1).reshape({N, (L - l) * D});
      };
      of.residual_ND = side_by_side(step.residual_LND);
      return side_by_side(g_LND);
    };
    training::run(pass, s.layers[l]->annealing);
  };
  for (int64_t l = 0; l < L; ++l)
    step.passes.push_back(std::make_unique<Pass>(training::pass_of(*s.layers[l], {batch.x_LND[l], {}, {}})));
  run_from(0);
  for (auto& pass : step.passes) pass->shared = nullptr;  // which refers to what ends here
  step.gradient.b_dec_D = g_LND.sum(1);
  if (s.options.skip) step.gradient.W_skip_DD = at::bmm(g_LND.mT(), batch.x_LND);
  return step;
}

TrainerMetrics metrics_of(const CrossLayerState& s, const Batch& batch, const Step& step) {
  const auto N = static_cast<double>(batch.x_LND.size(1)), L = static_cast<double>(s.n_layers());
  const auto& last = *s.layers.front();
  TrainerMetrics out;
  out.step = last.steps;
  out.rows = last.rows + batch.x_LND.size(1);
  out.mse = step.mse;
  double squares = std::pow(training::gradient_norm(step.gradient), 2), dead = 0;
  for (size_t l = 0; l < s.layers.size(); ++l) {
    const auto& pass = *step.passes[l];
    out.sparsity_loss += pass.sparsity_loss;
    out.aux_loss += pass.aux_loss;
    out.l0 += pass.fired_F.sum().item<double>() / N;
    dead += static_cast<double>(pass.dead.size(0));
    squares += std::pow(training::gradient_norm(pass.gradient), 2);
    const auto& w = s.layers[l]->w;
    out.threshold +=
        (w.threshold_F.defined() ? w.threshold_F.mean().item<double>() : s.layers[l]->threshold) / L;
  }
  out.loss = out.mse + out.sparsity_loss + out.aux_loss;
  const auto variance = (batch.y_LND - batch.y_LND.mean(1, true)).square_().sum().item<double>();
  out.explained_variance = 1 - step.residual_LND.square().sum().item<double>() / variance;
  out.dead_share = dead / (L * static_cast<double>(s.options.d_sae));
  out.gradient_norm = std::sqrt(squares);
  out.lr = training::learning_rate(s.options, last.steps);
  out.coefficient = step.passes.front()->coefficient;
  return out;
}

torch::Tensor stacked(const CrossLayerState& s, const std::function<torch::Tensor(const State&)>& of) {
  std::vector<torch::Tensor> rows;
  for (const auto& layer : s.layers) rows.push_back(of(*layer));
  return at::stack(rows);
}

}  // namespace

CrossLayerTrainer::CrossLayerTrainer(std::unique_ptr<CrossLayerState> state) : state_(std::move(state)) {}
CrossLayerTrainer::~CrossLayerTrainer() = default;
CrossLayerTrainer::CrossLayerTrainer(CrossLayerTrainer&&) noexcept = default;
CrossLayerTrainer& CrossLayerTrainer::operator=(CrossLayerTrainer&&) noexcept = default;

CrossLayerTrainer::CrossLayerTrainer(TrainerOptions options, int64_t n_layers, int64_t d_in, int64_t d_out,
                                     DictionaryOrigin origin, torch::Device device) {
  const at::NoGradGuard no_grad;
  state_ = new_state(std::move(options), n_layers, d_in, d_out, std::move(origin), device);
}

CrossLayerTrainer::CrossLayerTrainer(TrainerOptions options, const CrossLayerWeights& start,
                                     DictionaryOrigin origin) {
  const auto L = static_cast<int64_t>(start.layers.size());
  check<ShapeError>(L > 0, "CrossLayerTrainer: start must have at least one layer");
  const auto &top = start.layers.back().W_dec_FD, &enc = start.layers.back().W_enc_FD;
  check<ShapeError>(
      top.defined() && top.dim() == 2 && enc.defined() && enc.dim() == 2,
      "CrossLayerTrainer: start must have W_enc [d_sae, d_in] and W_dec [d_sae, (L - l) d_out] in "
      "each layer");
  options.d_sae = top.size(0);
  const at::NoGradGuard no_grad;
  state_ = new_state(std::move(options), L, enc.size(1), top.size(1), std::move(origin), top.device());
  for (int64_t l = 0; l < L; ++l) training::take_weights(state_->layers[l]->w, start.layers[l]);
  DictionaryWeights outputs;
  outputs.b_dec_D = start.b_dec_LD;
  outputs.W_skip_DD = start.W_skip_LDD;
  training::take_weights(state_->w, outputs);
  state_->has_given_weights = true;
}

const TrainerOptions& CrossLayerTrainer::options() const {
  return state_->options;
}
const DictionaryOrigin& CrossLayerTrainer::origin() const {
  return state_->origin;
}
int64_t CrossLayerTrainer::n_layers() const {
  return state_->n_layers();
}
int64_t CrossLayerTrainer::d_in() const {
  return state_->d_in;
}
int64_t CrossLayerTrainer::d_out() const {
  return state_->d_out;
}
int64_t CrossLayerTrainer::steps() const {
  return state_->layers.front()->steps;
}

void CrossLayerTrainer::measure(const torch::Tensor& x_LND, const torch::Tensor& y_LND) {
  const at::NoGradGuard no_grad;
  introspect::sae::measure(*state_, x_LND, y_LND);
}

TrainerMetrics CrossLayerTrainer::step(const torch::Tensor& x_LND, const torch::Tensor& y_LND) {
  const at::NoGradGuard no_grad;
  auto& s = *state_;
  start(s, x_LND, y_LND);
  const auto batch = batch_of(s, x_LND, y_LND);
  auto step = run(s, batch);
  for (auto& pass : step.passes) training::project(*pass);
  const auto metrics = metrics_of(s, batch, step);
  training::check_finite(metrics, s.options, metrics.dead_share == 1);
  const auto scale = training::clip_scale(s.options, metrics.gradient_norm);
  training::adam(s.w, step.gradient, s.first, s.second, s.options, steps() + 1, metrics.lr, scale);
  for (int64_t l = 0; l < s.n_layers(); ++l)
    training::update(*s.layers[l], *step.passes[l], metrics.lr, scale);
  return metrics;
}

std::pair<TrainerMetrics, CrossLayerWeights> CrossLayerTrainer::gradients(const torch::Tensor& x_LND,
                                                                          const torch::Tensor& y_LND) const {
  const at::NoGradGuard no_grad;
  const auto batch = batch_of(*state_, x_LND, y_LND);
  const auto step = run(*state_, batch);
  CrossLayerWeights out;
  for (int64_t l = 0; l < n_layers(); ++l) {
    auto gradient = training::zeros_like(state_->layers[l]->w);
    for (const auto& [name, tensor] : step.passes[l]->gradient.operands())
      torch::Tensor(gradient.operands().get(name)).copy_(tensor);
    out.layers.push_back(gradient);
  }
  out.b_dec_LD = step.gradient.b_dec_D;
  out.W_skip_LDD = step.gradient.W_skip_DD;
  return {metrics_of(*state_, batch, step), out};
}

CrossLayerTranscoder CrossLayerTrainer::transcoder() const {
  const at::NoGradGuard no_grad;
  const auto& s = *state_;
  std::vector<Dictionary> layers;
  for (const auto& layer : s.layers) layers.push_back(training::dictionary_of(*layer));
  auto b_dec = s.w.b_dec_D.clone(), W_skip = s.w.W_skip_DD;
  if (s.scale_in_L.defined()) b_dec = b_dec / s.scale_out_L.unsqueeze(1);
  if (W_skip.defined())
    W_skip = s.scale_in_L.defined() ? W_skip * by_layer(s.scale_in_L / s.scale_out_L) : W_skip.clone();
  return {std::move(layers), b_dec, W_skip, s.origin};
}

CrossLayerWeights CrossLayerTrainer::weights() const {
  CrossLayerWeights out;
  for (const auto& layer : state_->layers)
    out.layers.push_back(DictionaryWeights::from_operands(layer->w.operands().clone()));
  out.b_dec_LD = state_->w.b_dec_D.clone();
  if (state_->w.W_skip_DD.defined()) out.W_skip_LDD = state_->w.W_skip_DD.clone();
  return out;
}

torch::Tensor CrossLayerTrainer::steps_since_fired() const {
  return stacked(*state_, [](const State& layer) { return layer.since_fired; });
}

torch::Tensor CrossLayerTrainer::firing_rates() const {
  return stacked(*state_, training::firing_rates);
}

void CrossLayerTrainer::save(const fs::path& folder) const {
  const auto& s = *state_;
  training::Tensors tensors;
  auto layers = nlohmann::ordered_json::array();
  for (int64_t l = 0; l < s.n_layers(); ++l) {
    training::add_tensors(*s.layers[l], concat("layers.", l, "."), tensors);
    layers.push_back(training::state_json(*s.layers[l]));
  }
  for (const auto& [prefix, weights] : {std::pair{"", &s.w}, {"first.", &s.first}, {"second.", &s.second}})
    for (const auto& [name, tensor] : weights->operands()) tensors.emplace_back(prefix + name, tensor);
  if (s.scale_in_L.defined()) {
    tensors.emplace_back("scale_in", s.scale_in_L.to(torch::kFloat64));
    tensors.emplace_back("scale_out", s.scale_out_L.to(torch::kFloat64));
  }
  const nlohmann::ordered_json json = {{"d_in", s.d_in},
                                       {"d_out", s.d_out},
                                       {"has_given_weights", s.has_given_weights},
                                       {"is_started", s.is_started},
                                       {"length_in", s.length_in},
                                       {"length_out", s.length_out},
                                       {"measured", s.measured},
                                       {"layers", layers}};
  training::save_trainer(folder / kFile, "CrossLayerTrainer::save", kFormat, tensors, s.options, s.origin,
                         json);
}

CrossLayerTrainer CrossLayerTrainer::load(const fs::path& folder, torch::Device device) {
  const training::TrainerFile file(folder / kFile, "CrossLayerTrainer::load", kFormat);
  const auto field = file.state(), layers = field.at("layers");
  const auto L = static_cast<int64_t>(layers.list());
  auto s = new_state(file.options(), L, field.at("d_in").integer(), field.at("d_out").integer(),
                     file.origin(), device);
  s->has_given_weights = field.at("has_given_weights").boolean();
  s->is_started = field.at("is_started").boolean();
  s->length_in = field.at("length_in").numbers();
  s->length_out = field.at("length_out").numbers();
  s->measured = field.at("measured").integer();
  const auto read = file.tensors(device);
  for (int64_t l = 0; l < L; ++l) {
    auto& layer = *s->layers[l];
    training::read_state(layers.at(static_cast<size_t>(l)), layer);
    layers.at(static_cast<size_t>(l))
        .require(layer.d_in == s->d_in && layer.d_out == (L - l) * s->d_out, "is of other widths");
    training::read_tensors(read, concat("layers.", l, "."),
                           layer_weights(layer.options, layer.d_in, layer.d_out, torch::kCPU), layer);
  }
  for (const auto& [prefix, weights] :
       {std::pair{"", &s->w}, {"first.", &s->first}, {"second.", &s->second}}) {
    hooks::Operands::Tensors found;
    for (const auto& [name, tensor] : weights->operands())
      found[name] = read(prefix + name, tensor.scalar_type(), tensor.sizes());
    *weights = DictionaryWeights::from_operands(found);
  }
  if (s->is_started && s->options.input_norm == InputNorm::scale) {
    s->scale_in_L = read("scale_in", torch::kFloat64, {L}).to(s->like());
    s->scale_out_L = read("scale_out", torch::kFloat64, {L}).to(s->like());
  }
  return CrossLayerTrainer(std::move(s));
}

}  // namespace introspect::sae

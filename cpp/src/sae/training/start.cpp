#include <algorithm>
#include <cmath>
#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "introspect/core/check.h"

#include "core/dense.h"
#include "sae/training/adam.h"
#include "sae/training/state.h"

namespace introspect::sae::training {
namespace {

constexpr double kLeast = 1e-30;  // of lengths and deviations: rows of zeros have an error of weight 0

/// Random numbers of a seed are those of the CPU, whatever the device.
at::Generator generator(uint64_t seed) {
  return at::make_generator<at::CPUGeneratorImpl>(seed);
}

torch::Tensor rows_of(const State& state, const torch::Tensor& rows, const char* what, int64_t width) {
  check_dense<ShapeError>(rows, "Trainer: ", what);
  check<ShapeError>(rows.dim() == 2 && rows.size(0) > 0 && rows.size(1) == width && rows.is_floating_point(),
                    "Trainer: ", what, " must be rows [N, ", width, "] of a floating dtype, got ",
                    rows.scalar_type(), " ", rows.sizes());
  return rows.detach().to(state.like()).contiguous();
}

/// Sum over rows of their lengths at each site.
std::vector<double> lengths_at(const torch::Tensor& x_ND, const std::vector<int64_t>& sites) {
  std::vector<double> out;
  int64_t first = 0;
  for (const auto width : sites) {
    out.push_back(x_ND.narrow(1, first, width).norm(2, -1).sum(at::kDouble).item<double>());
    first += width;
  }
  return out;
}

torch::Tensor scale_of(const std::vector<double>& lengths, int64_t rows, const std::vector<int64_t>& sites,
                       const torch::TensorOptions& like) {
  std::vector<torch::Tensor> parts;
  for (size_t i = 0; i < sites.size(); ++i) {
    const auto mean = lengths[i] / static_cast<double>(rows);
    check<Error>(mean > 0 && std::isfinite(mean),
                 "Trainer: the rows that were measured have a mean length of ", mean);
    parts.push_back(at::full({sites[i]}, std::sqrt(static_cast<double>(sites[i])) / mean, like));
  }
  return at::cat(parts);
}

}  // namespace

Batch batch_of(const State& state, const torch::Tensor& x, const torch::Tensor& y) {
  const auto& o = state.options;
  check<ShapeError>(y.defined() == o.transcodes, o.transcodes ? "Trainer: one that transcodes needs y"
                                                              : "Trainer: y is given only to transcoders");
  Batch out{rows_of(state, x, "x", state.d_in), {}, {}};
  out.y_ND = y.defined() ? rows_of(state, y, "y", state.d_out) : out.x_ND;
  check<ShapeError>(out.y_ND.size(0) == out.x_ND.size(0), "Trainer: x and y must have as many rows, got ",
                    out.x_ND.size(0), " and ", out.y_ND.size(0));
  switch (o.input_norm) {
    case InputNorm::none:
      break;
    case InputNorm::scale:
      if (!state.scale_in.defined()) break;
      out.x_ND = out.x_ND * state.scale_in;
      out.y_ND = y.defined() ? out.y_ND * state.scale_out : out.x_ND;
      break;
    case InputNorm::whitening:
      if (!state.whitening.mean_D.defined()) break;
      out.x_ND = at::mm(out.x_ND - state.whitening.mean_D.to(state.like()),
                        state.whitening.matrix_DD.to(state.like()));
      out.y_ND = out.x_ND;
      break;
    // The error of x_hat = decoded * scale + shift is scale times that of decoded against (y - shift) / scale.
    case InputNorm::constant_norm: {
      const auto scale =
          (out.x_ND.norm(2, -1, true) / std::sqrt(static_cast<double>(state.d_in))).clamp_min(kLeast);
      out.x_ND = out.x_ND / scale;
      out.y_ND = y.defined() ? out.y_ND / scale : out.x_ND;
      out.weight_N = scale.square().squeeze(1);
      break;
    }
    case InputNorm::layer_norm: {
      const auto shift = out.x_ND.mean(-1, true),
                 scale = out.x_ND.std(-1, /*unbiased=*/true, true).clamp_min(kLeast);
      out.y_ND = (out.y_ND - shift) / scale;
      out.x_ND = (out.x_ND - shift) / (scale + DictionaryConfig{}.layer_norm_eps);
      out.weight_N = scale.square().squeeze(1);
      break;
    }
  }
  return out;
}

void measure(State& state, const torch::Tensor& x, const torch::Tensor& y) {
  const auto norm = state.options.input_norm;
  if (norm == InputNorm::whitening && !state.whitening.mean_D.defined())
    state.whitening_of.add(batch_of(state, x, y).x_ND);
  if (norm != InputNorm::scale || state.scale_in.defined()) return;
  const auto batch = batch_of(state, x, y);
  const auto add = [](std::vector<double>& to, const std::vector<double>& what) {
    to.resize(what.size());
    for (size_t i = 0; i < what.size(); ++i) to[i] += what[i];
  };
  add(state.length_in, lengths_at(batch.x_ND, state.sites_in()));
  add(state.length_out, lengths_at(batch.y_ND, state.sites_out()));
  state.measured += batch.x_ND.size(0);
}

DictionaryWeights first_weights(const TrainerOptions& o, int64_t d_in, int64_t d_out, torch::Device device) {
  auto random = generator(o.seed);
  const auto F = o.d_sae;
  const auto like = at::dtype(o.float64 ? torch::kFloat64 : torch::kFloat32);
  // Directions of W_dec: uniform entries, rows of one length, as SAELens has them.
  const auto uniform = [&](int64_t width) { return at::rand({F, width}, random, like).mul_(2).sub_(1); };
  const auto directions = [&](int64_t width) {
    auto out = uniform(width);
    return out.div_(out.norm(2, -1, true));
  };
  DictionaryWeights w;
  const bool pursues = o.objective == Objective::matching_pursuit;
  const auto length = pursues || o.unit_decoder ? 1.0 : o.decoder_norm;
  w.W_dec_FD = directions(d_out).mul_(length);
  w.b_dec_D = at::zeros({d_out}, like);
  if (!pursues) {
    w.W_enc_FD = d_in == d_out && !o.transcodes && length > 0 ? w.W_dec_FD * o.encoder_scale
                                                              : directions(d_in).mul_(o.encoder_scale * 0.1);
    if (o.objective == Objective::gated) {
      w.b_gate_F = at::zeros({F}, like);
      w.b_mag_F = at::zeros({F}, like);
      w.r_mag_F = at::zeros({F}, like);
    } else {
      w.b_enc_F = at::zeros({F}, like);
    }
    if (o.objective == Objective::jumprelu) w.threshold_F = at::full({F}, o.init_threshold, like);
  }
  if (o.skip) w.W_skip_DD = at::zeros({d_out, d_in}, like);
  return DictionaryWeights::from_operands(w.operands().to(device));
}

torch::Tensor geometric_median(const torch::Tensor& x_ND) {
  constexpr int64_t kMost = 100;
  constexpr double kTolerance = 1e-5;
  auto guess = x_ND.mean(0);
  for (int64_t i = 0; i < kMost; ++i) {
    const auto weight_N = 1 / (x_ND - guess).norm(2, -1).clamp_min(1e-12);
    const auto next = at::mv(x_ND.t(), weight_N / weight_N.sum());
    const auto moved = (next - guess).norm().item<double>();
    guess = next;
    if (moved < kTolerance) break;
  }
  return guess;
}

torch::Tensor first_bias(BiasStart start, const torch::Tensor& y_ND) {
  switch (start) {
    case BiasStart::zero:
      return at::zeros({y_ND.size(1)}, y_ND.options());
    case BiasStart::mean:
      return y_ND.mean(0);
    case BiasStart::geometric_median:
      return geometric_median(y_ND);
  }
  throw std::logic_error("Trainer: a start of b_dec that has no case");
}

void start_encoder_bias(State& state, const torch::Tensor& x_ND) {
  const auto& o = state.options;
  if (o.b_enc_rate <= 0) return;
  Pass pass(o, state.w, {});
  pass.x_ND = x_ND;
  const auto p_NF = pass.pre_activations();
  const auto N = p_NF.size(0);
  const auto active = static_cast<int64_t>(std::llround(o.b_enc_rate * static_cast<double>(N)));
  const auto least = std::get<0>(p_NF.kthvalue(std::clamp<int64_t>(N - active, 1, N), 0));
  state.w.b_enc_F.copy_(state.w.threshold_F.defined() ? state.w.threshold_F - least : -least);
}

void start(State& state, const torch::Tensor& x, const torch::Tensor& y) {
  if (state.is_started) return;
  const auto& o = state.options;
  check<Error>(at::isfinite(x).all().item<bool>() && (!y.defined() || at::isfinite(y).all().item<bool>()),
               "Trainer: the first batch holds numbers that are not finite");
  if (o.input_norm == InputNorm::scale) {
    if (state.measured == 0) measure(state, x, y);
    state.scale_in = scale_of(state.length_in, state.measured, state.sites_in(), state.like());
    state.scale_out = o.transcodes
                          ? scale_of(state.length_out, state.measured, state.sites_out(), state.like())
                          : state.scale_in;
  }
  if (o.input_norm == InputNorm::whitening) {
    if (state.whitening_of.rows == 0) measure(state, x, y);
    state.whitening = state.whitening_of.whitening();
  }
  if (!state.has_given_weights) {
    const auto batch = batch_of(state, x, y);
    if (o.b_dec_start != BiasStart::zero) state.w.b_dec_D.copy_(first_bias(o.b_dec_start, batch.y_ND));
    start_encoder_bias(state, batch.x_ND);
  }
  state.is_started = true;
}

void resample(State& state, const Batch& batch, const torch::Tensor& error_ND) {
  auto dead = (state.since_fired > state.options.resample_every / 2).nonzero().squeeze(1);
  // Rows of length 0 have no direction to give.
  const auto badness = (error_ND.norm(2, -1) * (batch.x_ND.norm(2, -1) > 0) * (batch.y_ND.norm(2, -1) > 0))
                           .to(torch::kCPU, torch::kFloat64);
  const auto n = std::min({dead.size(0), badness.size(0), (badness > 0).sum().item<int64_t>()});
  if (n == 0 || dead.size(0) == state.options.d_sae) return;
  auto random = generator(state.options.seed + static_cast<uint64_t>(state.steps));
  const auto rows = badness.multinomial(n, false, random).to(state.w.W_dec_FD.device());
  auto& w = state.w;
  const auto living = (state.since_fired <= state.options.resample_every / 2).nonzero().squeeze(1);
  const auto length = w.W_enc_FD.index_select(0, living).norm(2, -1).mean();
  const auto x = batch.x_ND.index_select(0, rows), y = batch.y_ND.index_select(0, rows);
  dead = dead.narrow(0, 0, n);
  w.W_enc_FD.index_copy_(0, dead, x * (0.2 * length));
  w.W_dec_FD.index_copy_(0, dead, y / y.norm(2, -1, true));
  for (const auto& bias : {w.b_enc_F, w.b_gate_F, w.b_mag_F, w.r_mag_F})
    if (bias.defined()) bias.index_fill_(0, dead, 0);
  if (w.threshold_F.defined()) w.threshold_F.index_fill_(0, dead, state.options.init_threshold);
  for (const auto* moments : {&state.first, &state.second})
    for_each_weight(*moments, [&](const std::string& name, const torch::Tensor& m) {
      if (m.defined() && name != "b_dec" && name != "W_skip") m.index_fill_(0, dead, 0);
    });
  state.since_fired.index_fill_(0, dead, 0);
}

}  // namespace introspect::sae::training

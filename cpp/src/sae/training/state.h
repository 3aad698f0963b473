#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "introspect/sae/trainer.h"
#include "introspect/sae/whitening.h"

#include "sae/training/pass.h"

namespace introspect::sae::training {

/// All that a trainer is: what a checkpoint holds.
struct State {
  TrainerOptions options;
  DictionaryOrigin origin;
  int64_t d_in = 0, d_out = 0;
  DictionaryWeights w, first, second;  // weights and Adam's moments
  bool has_given_weights = false;      // biases are not those of a start
  bool is_started = false;             // what the first batch sets is set

  int64_t steps = 0, rows = 0;
  torch::Tensor since_fired;          // int64 [F]
  torch::Tensor fired, fired_before;  // rows, float64 [F]: in this window and in the one before it
  int64_t window_steps = 0, window_rows = 0, window_rows_before = 0;
  double threshold = 0;  // of p n: batchtopk's
  Annealing annealing;

  // InputNorm::scale: sums of lengths at each site, and what their means make of inputs and outputs
  std::vector<double> length_in, length_out;
  int64_t measured = 0;
  torch::Tensor scale_in, scale_out;  // [d_in], [d_out]; undefined: not known yet
  // InputNorm::whitening, in float64
  WhiteningStatistics whitening_of;
  Whitening whitening;  // undefined: not known yet

  std::vector<int64_t> sites_in() const { return sites(origin.inputs, d_in); }
  std::vector<int64_t> sites_out() const { return sites(origin.outputs, d_out); }
  torch::TensorOptions like() const { return w.W_dec_FD.options(); }
  torch::Tensor dead() const { return (since_fired > options.dead_window).nonzero().squeeze(1); }

 private:
  static std::vector<int64_t> sites(const std::vector<DictionarySite>& of, int64_t width) {
    std::vector<int64_t> out;
    for (const auto& site : of) out.push_back(site.width);
    return out.size() > 1 ? out : std::vector{width};
  }
};

struct Batch {
  torch::Tensor x_ND, y_ND, weight_N;  // as in Pass
};

/// Rows as the dictionary is given them: in its dtype, on its device, normalised. Throws ShapeError.
Batch batch_of(const State& state, const torch::Tensor& x, const torch::Tensor& y);
void measure(State& state, const torch::Tensor& x, const torch::Tensor& y);

/// Weights that no batch has a part in.
DictionaryWeights first_weights(const TrainerOptions& options, int64_t d_in, int64_t d_out,
                                torch::Device device);
/// Sets what the first batch sets, once: scales, b_dec, b_enc.
void start(State& state, const torch::Tensor& x, const torch::Tensor& y);

/// What a state's weights are in the form that infers: see Trainer::dictionary. Without b_dec where they have none.
Dictionary dictionary_of(const State& state);

/// b_dec of the first batch's outputs.
torch::Tensor first_bias(BiasStart start, const torch::Tensor& y_ND);
/// Sets b_enc so that each feature is active in b_enc_rate of the rows, if that is above 0.
void start_encoder_bias(State& state, const torch::Tensor& x_ND);

/// The point whose distances to rows have the least sum, by Weiszfeld's iteration.
torch::Tensor geometric_median(const torch::Tensor& x_ND);

/// Features dead for half of resample_every become inputs drawn by the length of their error: encoder 0.2 x times the mean
/// length of living encoders, decoder x / |x|, biases and moments 0. Bricken et al. 2023, as dictionary_learning.
void resample(State& state, const Batch& batch, const torch::Tensor& error_ND);

}  // namespace introspect::sae::training

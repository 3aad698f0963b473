#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/sae/dictionary.h"

namespace introspect::sae {

namespace training {
struct State;
}

/// What a dictionary is trained for. SSE is the squared error of a row summed over its entries; every loss is the mean over
/// the rows of a batch. p are pre-activations, f features, n_i = |W_dec_i|, H the step function.
enum class Objective : uint8_t {
  standard,    ///< f = relu(p); SSE + l1 sum f n (Anthropic, April 2024), or sum f (Bricken et al. 2023)
  gated,       ///< SSE + l1 sum relu(q + b_gate) n + SSE of relu(q + b_gate) decoded: 2404.16014
  topk,        ///< the k largest relu(p): SSE + aux: Gao et al. 2024, 2406.04093
  abstopk,     ///< the k largest |p|: 2510.00404
  batchtopk,   ///< the k N largest relu(p) of a batch; becomes jumprelu: Bussmann et al. 2024, 2412.06410
  matryoshka,  ///< batchtopk, SSE of each prefix of matryoshka_widths: Bussmann et al. 2025, 2503.17547
  jumprelu,  ///< f = p H(p - threshold), a loss of L0 and estimated gradients: Rajamanoharan et al. 2024, 2407.14435
  p_anneal,          ///< SSE + a sum f^p, p falling from 1: Karvonen et al. 2024, 2408.00113
  matching_pursuit,  ///< SSE, of features found one after another: Costa et al. 2025, 2506.03093
};

/// What is lost for the features that jumprelu has.
enum class SparsityLoss : uint8_t {
  step,       ///< l0 L0: 2407.14435
  tanh,       ///< l0 sum tanh(tanh_scale f n): Anthropic, January 2025
  quadratic,  ///< l0 2 / target_l0 (L0 - target_l0)^2: Gemma Scope 2
};

/// How dead features are drawn to what the others leave, e = x - x_hat, held fixed: the k_aux largest p of dead features of
/// each row, decoded without b_dec, fit e.
enum class AuxLoss : uint8_t {
  none,
  residual,  ///< SSE of p itself, times min(dead / k_aux, 1): SAELens, with aux_coefficient 1
  normalised,  ///< SSE of relu(p) over the variance of e: Gao et al., dictionary_learning, with aux_coefficient 1/32
};

/// What b_dec is before the first step.
enum class BiasStart : uint8_t { zero, mean, geometric_median };

enum class LearningRateSchedule : uint8_t { constant, cosine };

/// Names in files and in Python are those of the fields and of the values of enums. Steps are counted from 0.
struct TrainerOptions {
  Objective objective = Objective::topk;
  int64_t d_sae = 0;
  bool float64 = false;  ///< weights, gradients and moments; float32 otherwise
  uint64_t seed = 0;     ///< of the first weights and of resampling

  // Choice of features: topk, abstopk, batchtopk, matryoshka
  double k = 32;  ///< whole, but of batchtopk and matryoshka; of matching_pursuit the most steps
  bool rank_by_decoder_norm = true;        ///< p n are ranked, not p
  double threshold_lr = 0.01;              ///< how fast the saved threshold follows the least feature chosen
  std::vector<int64_t> matryoshka_widths;  ///< ascending; d_sae itself comes last unless it is there
  bool matryoshka_aux = false;             ///< the dead of each level fit what that level leaves
  double residual_threshold = 1e-2;        ///< matching_pursuit: a row whose rest is shorter is done

  // Sparsity
  double l1_coefficient = 1;           ///< standard, gated; p_anneal's first
  bool l1_by_decoder_norm = true;      ///< standard, gated
  double lp = 1;                       ///< standard: (sum (f n)^lp)^(1/lp)
  double l0_coefficient = 1;           ///< jumprelu
  int64_t sparsity_warm_up_steps = 0;  ///< the coefficient rises from 0 to its value in a line
  SparsityLoss sparsity_loss = SparsityLoss::step;
  double bandwidth = 0.05;  ///< jumprelu: of the rectangle around the threshold where it has a gradient
  double init_threshold = 0.01;
  bool ste_to_input = false;  ///< that gradient goes to p as well
  double tanh_scale = 4;
  double target_l0 = 0;            ///< of SparsityLoss::quadratic
  double pre_act_coefficient = 0;  ///< jumprelu: sum relu(threshold - p) n, of dead features
  bool pre_act_of_all = false;     ///< of every feature, as Anthropic has it
  bool gated_detach = false;  ///< gated: the auxiliary error trains encoder and gate alone, as in the paper
  double p_end = 0;           ///< p_anneal: of 10 values from 1, the last
  int64_t anneal_start = 15000, anneal_end = 0;  ///< anneal_end 0: total_steps
  int64_t anneal_updates = 10;
  bool anneal_power = true;  ///< sum f^p, else its p-th root

  // Dead features: not active in any row for more steps than the window
  AuxLoss aux = AuxLoss::residual;  ///< topk, abstopk, batchtopk, matryoshka
  double aux_coefficient = 1;
  int64_t k_aux = 0;  ///< 0: d_in / 2
  int64_t dead_window = 1000;
  int64_t resample_every =
      0;  ///< after so many steps, features dead for half of them become inputs that fit badly

  // Input and bias
  /// scale: each site's rows have length sqrt(width) on average, and so have outputs; whitening: see whitening.h
  InputNorm input_norm = InputNorm::none;
  bool subtract_b_dec = true;
  bool transcodes = false;  ///< y is given, of another point or width; b_dec is not taken off x
  bool skip = false;        ///< x W_skip^T is added to what is decoded
  BiasStart b_dec_start = BiasStart::zero;
  double b_enc_rate =
      0;  ///< b_enc starts where each feature is active in this share of the first batch; 0: at zero

  // Encoder and decoder
  double decoder_norm = 0.1;  ///< length of W_dec's rows at the start; matching_pursuit: 1; 0: W_dec is zero
  double encoder_scale = 1;   ///< W_enc starts as W_dec times this
  bool unit_decoder = false;  ///< W_dec's rows stay of length 1; always of matching_pursuit
  bool project_gradient = true;  ///< unit_decoder: without the gradient's part along the row

  // Adam
  double lr = 3e-4, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double clip = 1;  ///< longest gradient of all weights together; 0: any
  LearningRateSchedule schedule = LearningRateSchedule::constant;
  int64_t warm_up_steps = 0,
          decay_steps = 0;  ///< first (t + 1) / warm_up_steps of lr; the last fall to 0 in a line
  double lr_end = 0;        ///< where cosine ends; 0: lr / 10
  int64_t total_steps = 0;  ///< known for cosine, decay_steps and p_anneal; training may go on beyond

  bool operator==(const TrainerOptions&) const = default;

  /// Throws std::invalid_argument and ConfigError for options that are out of range or do not fit one another.
  INTROSPECT_EXPORT void check(int64_t d_in, int64_t d_out) const;
  /// All of them, as an object. from_json takes some; the others have their defaults. Throws ConfigError with the nearest
  /// names for one that does not exist.
  INTROSPECT_EXPORT std::string to_json() const;
  INTROSPECT_EXPORT static TrainerOptions from_json(const std::string& json);
};

/// Anthropic's jumprelu of January 2025: tanh loss, gradient into x, pre_act on all, l0 rising through the whole training,
/// lr falling in the last fifth. (Their threshold is e^t; here it is itself, and at least 0.)
INTROSPECT_EXPORT TrainerOptions anthropic_jumprelu(int64_t d_in, int64_t d_sae, int64_t total_steps);

/// Numbers of one step, of the batch before its update. In units of the normalised input where there is an input norm.
struct TrainerMetrics {
  int64_t step = 0;                        ///< updates before this one
  int64_t rows = 0;                        ///< of all steps, this one too
  double loss = 0;                         ///< mse + sparsity_loss + aux_loss
  double mse = 0;                          ///< mean SSE; of matryoshka the sum over its levels
  double sparsity_loss = 0, aux_loss = 0;  ///< with their coefficients
  double l0 = 0;                           ///< features that are not 0, of a row
  double explained_variance = 0;           ///< 1 - E|x - x_hat|^2 / E|x - E x|^2, both over the batch
  double dead_share = 0;                   ///< of features, not active for more than dead_window steps
  double gradient_norm = 0;                ///< before clipping
  double lr = 0, coefficient = 0;          ///< of this step: learning rate, and l1 or l0 coefficient
  double threshold = 0;                    ///< batchtopk's; of jumprelu the mean
};

/// One dictionary being trained on rows of activations. It knows no model and no text.
///
///     Trainer trainer({.objective = Objective::topk, .d_sae = 4608, .k = 32}, {}, 576, 576);
///     for (const auto& x_ND : batches) std::cout << trainer.step(x_ND).loss << "\n";
///     const auto sae = trainer.dictionary();
///
/// Several outputs in `origin` make it a crosscoder: sites side by side, n_i the sum of the lengths at each site. The same
/// batches, options and threads give the same bits. For one thread at a time.
class INTROSPECT_EXPORT Trainer {
 public:
  /// Throws as TrainerOptions::check, and ShapeError if the sites of `origin` are not as wide as d_in and d_out.
  Trainer(TrainerOptions options, DictionaryOrigin origin, int64_t d_in, int64_t d_out,
          torch::Device device = torch::kCPU);
  /// From weights, in the trainer's own form: input scales not folded, W_dec as it is. Throws as Dictionary does.
  Trainer(TrainerOptions options, DictionaryOrigin origin, const DictionaryWeights& start);
  ~Trainer();
  Trainer(Trainer&&) noexcept;
  Trainer& operator=(Trainer&&) noexcept;

  const TrainerOptions& options() const;
  const DictionaryOrigin& origin() const;
  int64_t d_in() const;
  int64_t d_out() const;
  int64_t steps() const;  ///< updates done

  /// Lengths of rows for InputNorm::scale, and covariances for whitening, gathered over as many batches as it is called with, all before the first step.
  /// Without it the first step's own batch is measured. Does nothing for other norms.
  void measure(const torch::Tensor& x_ND, const torch::Tensor& y_ND = {});

  /// One update. x [N, d_in] of any floating dtype; y [N, d_out] what a transcoder is to write; x itself otherwise.
  ///
  /// Throws ShapeError, and Error if the loss or a gradient is not finite or every feature is dead: the trainer is then as it
  /// was before, so that what was saved last is the last good state.
  TrainerMetrics step(const torch::Tensor& x_ND, const torch::Tensor& y_ND = {});

  /// Loss and gradients by the names of DictionaryWeights::operands, as the next step would take them: nothing is changed,
  /// clipped or projected. Where the first step would set biases or scales, those are zero and 1.
  std::pair<TrainerMetrics, std::map<std::string, torch::Tensor>> gradients(
      const torch::Tensor& x_ND, const torch::Tensor& y_ND = {}) const;

  /// As it stands now, in the form that infers: input scales folded, batchtopk and matryoshka as jumprelu, and W_dec of rows
  /// of length 1 where choices were ranked by decoder norm.
  Dictionary dictionary() const;

  /// Copies of the weights that are trained, by name: what the second constructor takes.
  DictionaryWeights weights() const;
  torch::Tensor steps_since_fired() const;  ///< int64 [F]: 0 of those active in the last step
  /// Share of the rows of the last steps (of all, at most the last 2,000 to 4,000) in which each feature was active, [F] float64.
  torch::Tensor firing_rates() const;

  /// Writes trainer.safetensors into `folder`, made if it is not there: weights, moments, counters and, as JSON in its
  /// metadata, options and origin. The file appears whole or not at all. Throws IoError.
  void save(const std::filesystem::path& folder) const;
  /// Goes on with the same numbers, bit for bit on as many threads. Throws IoError for a file that is missing or damaged.
  static Trainer load(const std::filesystem::path& folder, torch::Device device = torch::kCPU);

 private:
  explicit Trainer(std::unique_ptr<training::State> state);
  std::unique_ptr<training::State> state_;
};

}  // namespace introspect::sae

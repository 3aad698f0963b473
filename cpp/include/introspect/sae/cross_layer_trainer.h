#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/sae/cross_layer_transcoder.h"
#include "introspect/sae/trainer.h"

namespace introspect::sae {

namespace training {
struct CrossLayerState;
}

/// What a cross-layer transcoder is trained on: each layer's own weights, without b_dec and skip, and those of the outputs.
struct CrossLayerWeights {
  std::vector<DictionaryWeights> layers;  ///< W_enc [F, d_in], b_enc, W_dec [F, (L - l) D], threshold
  torch::Tensor b_dec_LD;
  torch::Tensor W_skip_LDD;  ///< [L, D, d_in]; undefined without a skip
};

/// A cross-layer transcoder being trained: one squared error, of all layers' outputs together.
///
///     L = sum_t |y_t - y_hat_t|^2 + sum_l S(f_l),  y_hat_t = sum over l <= t of f_l W_dec_{l -> t} + b_dec_t (+ x_t W_skip_t^T)
///
/// S is the objective's: standard (l1 sum f n), jumprelu (also the tanh loss that circuit tracing uses), topk, abstopk and
/// batchtopk, chosen within each layer; n_i is the length of all that a feature writes, to every layer together. Options are
/// those of a transcoder. The same batches, options and threads give the same bits. For one thread at a time.
///
/// Source: Ameisen et al. 2025, transformer-circuits.pub/2025/attribution-graphs/methods.html.
class INTROSPECT_EXPORT CrossLayerTrainer {
 public:
  /// origin: L sites in and out, in order, or none. Throws as TrainerOptions::check, ConfigError for an objective or option
  /// that is not one of these (resampling, an input norm of each row), and ShapeError.
  CrossLayerTrainer(TrainerOptions options, int64_t n_layers, int64_t d_in, int64_t d_out,
                    DictionaryOrigin origin = {}, torch::Device device = torch::kCPU);
  /// From weights, in the trainer's own form: input scales not folded.
  CrossLayerTrainer(TrainerOptions options, const CrossLayerWeights& start, DictionaryOrigin origin = {});
  ~CrossLayerTrainer();
  CrossLayerTrainer(CrossLayerTrainer&&) noexcept;
  CrossLayerTrainer& operator=(CrossLayerTrainer&&) noexcept;

  const TrainerOptions& options() const;
  const DictionaryOrigin& origin() const;
  int64_t n_layers() const;
  int64_t d_in() const;
  int64_t d_out() const;
  int64_t steps() const;  ///< updates done

  /// Lengths of rows for InputNorm::scale: see Trainer::measure.
  void measure(const torch::Tensor& x_LND, const torch::Tensor& y_LND);

  /// One update of x [L, N, d_in], what the MLPs read, and y [L, N, d_out], what they write. Numbers are sums over layers
  /// (l0, losses), explained_variance is of all outputs together, dead_share of all features, threshold the mean of layers.
  ///
  /// Throws as Trainer::step; the trainer is then as it was before.
  TrainerMetrics step(const torch::Tensor& x_LND, const torch::Tensor& y_LND);

  /// Loss and gradients as the next step would take them: nothing is changed, clipped or projected.
  std::pair<TrainerMetrics, CrossLayerWeights> gradients(const torch::Tensor& x_LND,
                                                         const torch::Tensor& y_LND) const;

  /// As it stands now, in the form that infers: see Trainer::dictionary.
  CrossLayerTranscoder transcoder() const;

  CrossLayerWeights weights() const;        ///< copies: what the second constructor takes
  torch::Tensor steps_since_fired() const;  ///< int64 [L, F]
  torch::Tensor firing_rates() const;       ///< float64 [L, F]: see Trainer

  /// Writes cross_layer_trainer.safetensors into `folder`, whole or not at all. Throws IoError.
  void save(const std::filesystem::path& folder) const;
  /// Goes on with the same numbers, bit for bit on as many threads. Throws IoError.
  static CrossLayerTrainer load(const std::filesystem::path& folder, torch::Device device = torch::kCPU);

 private:
  explicit CrossLayerTrainer(std::unique_ptr<training::CrossLayerState> state);
  std::unique_ptr<training::CrossLayerState> state_;
};

}  // namespace introspect::sae

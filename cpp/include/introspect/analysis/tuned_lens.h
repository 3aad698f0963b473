#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/lens.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

enum class LensOptimizer {
  sgd,   ///< Nesterov momentum, learning rate lr (1 - momentum)
  adam,  ///< amsgrad, learning rate lr / 1000, betas momentum and 0.999
};

/// The defaults are those of Belrose et al. 2023 but for tokens_per_step (2^18 there) and context (2048).
struct TunedLensOptions {
  int64_t steps = 250;
  int64_t tokens_per_step = 512;  ///< at least: whole pieces of texts are taken
  int64_t context = 128;          ///< tokens of a piece; longer texts are cut
  LensOptimizer optimizer = LensOptimizer::sgd;
  double lr = 1.0;  ///< of the first step; it falls linearly to 0
  double momentum = 0.9;
  double weight_decay = 1e-3;
  double clip = 1.0;  ///< the largest norm of the gradient of all layers together
  bool bias = true;
  uint64_t seed = 0;  ///< of the order of pieces

  /// What training starts from. None: h itself, the logit lens.
  std::optional<Lens> start;
  int64_t memory_budget = int64_t{512} << 20;  ///< bytes of logits and what is made of them, at a time
  Progress progress;                           ///< counts steps; also called between layers
  /// Called after each step with the mean KL of its tokens at each layer, [n_layers], embedding first.
  std::function<void(int64_t step, const torch::Tensor& kl)> on_step;
};

/// A tuned lens of every layer, trained on texts by the mean KL(model || lens) of their tokens, in nats.
///
/// One forward pass of some pieces gives the residuals of all layers, nothing is kept from step to step, and the gradient is
/// that of the formula: softmax of the lens less the model's, back through unembedding and norm. In float32 (float64 of
/// a float64 model). After steps == 0 it is what it starts from.
///
/// Throws std::invalid_argument for no texts, empty ones, or options out of range, std::out_of_range for tokens,
/// ConfigError for a model whose blocks stay in its files, and as Lens::check_model of `start`: all before any pass.
INTROSPECT_EXPORT Lens train_tuned_lens(const models::Model& model,
                                        const std::vector<std::vector<int64_t>>& texts,
                                        const TunedLensOptions& options = {});

/// The affine map from each layer's residuals to the last's by least squares, as a tuned lens: no gradients, one pass over
/// the texts, and a start from which training has little left to do.
///
/// Tokens count inversely to the square of their last residual, which the final norm divides by. `ridge` draws towards
/// the logit lens: it stands beside the mean square of a residual's entries.
/// Throws as train_tuned_lens does.
INTROSPECT_EXPORT Lens regression_lens(const models::Model& model,
                                       const std::vector<std::vector<int64_t>>& texts, double ridge = 0.01,
                                       int64_t context = 128, bool bias = true,
                                       const Progress& progress = {});

}  // namespace introspect::analysis

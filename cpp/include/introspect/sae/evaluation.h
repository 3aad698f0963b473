#pragma once

#include <cstdint>
#include <optional>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"
#include "introspect/sae/contexts.h"
#include "introspect/sae/dictionary.h"

namespace introspect::sae {

/// How well a dictionary gives back what it should, and with how many features. y is what it should give (a transcoder's
/// is what stands at its output, never its input), y' what it gives, r = y - y', E the mean over rows.
struct ReconstructionFigures {
  int64_t rows = 0;
  double mse = 0;                 ///< E|r|^2: summed over dimensions
  double explained_variance = 0;  ///< 1 - E|r|^2 / (E|y|^2 - |E y|^2); NaN where y does not vary
  /// E(1 - |r|^2 / |y - mean of its batch|^2), SAELens's before May 2025 and SAEBench's: it depends on the batches, and a
  /// few rows near the mean rule it.
  double explained_variance_legacy = 0;
  double fraction_of_variance_explained =
      0;              ///< 1 - Var r / Var y, dictionary_learning's: blind to a constant error
  double cosine = 0;  ///< E cos(y, y')
  double l2_norm_in = 0, l2_norm_out = 0;   ///< E|y|, E|y'|
  double l2_ratio = 0;                      ///< E(|y'| / |y|): below 1 is shrinkage
  double relative_reconstruction_bias = 0;  ///< E|y'|^2 / E(y.y'), 2404.16014's equation 10
  double l0 = 0;                            ///< features that are not 0, a row
  double l1 = 0;                            ///< sum of |f|, a row
  double dead_share = 0;                    ///< features that were 0 in all rows
  torch::Tensor density_F;                  ///< float64: share of the rows in which a feature is not 0
  torch::Tensor mean_active_F;              ///< float64: mean of f where it is not 0; 0 for dead ones
  torch::Tensor max_active_F;               ///< float64: largest |f|
};

/// The sums that ReconstructionFigures are made of, in float64, over rows that come in any number of batches.
class INTROSPECT_EXPORT ReconstructionStatistics {
 public:
  ReconstructionStatistics(int64_t d_sae, int64_t d_out);

  /// Rows [N, d_in] through the dictionary, compared with y [N, d_out]; undefined: with x, as for an autoencoder.
  /// Throws ShapeError for rows of other widths, std::invalid_argument for rows that are not finite.
  void add(const Dictionary& dictionary, const torch::Tensor& x_ND, const torch::Tensor& y_ND = {});

  /// The same for what was computed already.
  void add(const SparseFeatures& f, const torch::Tensor& y_ND, const torch::Tensor& y_hat_ND);

  /// Throws std::invalid_argument if no rows were added.
  ReconstructionFigures figures() const;

 private:
  int64_t rows_ = 0, batches_ = 0, active_ = 0;
  double error_ = 0, squared_in_ = 0, squared_out_ = 0, product_ = 0, legacy_ = 0, cosine_ = 0, in_ = 0,
         out_ = 0, ratio_ = 0, l1_ = 0;
  torch::Tensor sum_D_, error_sum_D_;
  torch::Tensor count_F_, sum_F_, max_F_;
};

/// The model's next-token loss with the dictionary in it: as it is, with y' in the place of y, and with zeros there.
///
/// Logits are float32 (float64 of a float64 model) whatever the model's dtype. Losses are of the token after each read one;
/// KL(model || changed model) is at each read token. Special tokens keep their y, and are zero with the rest in the zero
/// ablation, as in SAELens.
struct SpliceFigures {
  int64_t tokens = 0;                          ///< of KL; those of the losses have a token after them
  double ce = 0, ce_spliced = 0, ce_zero = 0;  ///< nats
  double kl_spliced = 0, kl_zero = 0;          ///< nats
  double ce_score() const { return (ce_zero - ce_spliced) / (ce_zero - ce); }
  double kl_score() const { return (kl_zero - kl_spliced) / kl_zero; }
};

struct EvaluationOptions {
  bool spliced = true;  ///< false: the reconstruction only, and no pass above the dictionary's last site
  int64_t batch_tokens = 2048;  ///< of a pass
  Progress progress;
};

struct DictionaryEvaluation {
  ReconstructionFigures reconstruction;
  std::optional<SpliceFigures> splice;
};

/// A dictionary at its place in a model, on contexts.
///
/// One whole pass a batch; the two changed passes begin at the first block that is written to. Tokens of a dictionary that
/// is zero at BOS by construction (DictionaryOrigin::masks_bos) are not read there.
/// Throws before the first pass ConfigError for a dictionary that says no place or reads two models, HookError and
/// ShapeError for a place that this model does not have, or of another width, and what contexts.h has for contexts.
INTROSPECT_EXPORT DictionaryEvaluation evaluate(const models::Model& model, const Dictionary& dictionary,
                                                const Contexts& contexts,
                                                const EvaluationOptions& options = {});

}  // namespace introspect::sae

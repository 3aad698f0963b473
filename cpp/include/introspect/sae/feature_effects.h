#pragma once

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/sae/dictionary.h"

namespace introspect::sae {

/// What each feature of rows does to a number, to first order: its part of x times the number's gradient by x.
///
/// With x = sum_i f_i W_dec_i + bias + error, effects, bias_N and error_N sum to x . gradient, row by row.
struct FeatureEffects {
  SparseFeatures features;
  torch::Tensor effects;  ///< of each entry: f_i (W_dec_i . gradient), [entries]
  torch::Tensor error_N;  ///< of x less its reconstruction
  torch::Tensor bias_N;   ///< of b_dec, what an input norm took off, and a skip
};

/// Of rows x [N, d_out] and the gradient of a number by them, [N, d_out]; a transcoder's features are of source
/// [N, d_in], and x is what it stands for. A gradient that is the mean over a path from decode(0) to x makes integrated
/// gradients of it (Marks et al. 2024, 2403.19647, with features and error of 0 as the baseline).
///
/// Throws ShapeError.
INTROSPECT_EXPORT FeatureEffects feature_effects(const Dictionary& dictionary, const torch::Tensor& x_ND,
                                                 const torch::Tensor& gradient_ND,
                                                 const torch::Tensor& source_ND = {});

}  // namespace introspect::sae

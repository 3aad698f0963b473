#pragma once

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// Root-mean-square norm over the last dimension, as in Llama and Qwen2.
///
/// Computed in float32, for float64 input too, and rounded to x's dtype before the weight is applied: the checkpoints
/// were trained so, and float64 runs stay comparable with transformers'.
///
/// Shapes: x [..., D], weight [D] -> [..., D]. eps is added to the mean square.
/// Throws ShapeError if weight is not [D].
/// Source: Zhang & Sennrich 2019, arXiv:1910.07467; bit-equal to transformers' LlamaRMSNorm.
INTROSPECT_EXPORT torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

/// rms_norm before its weight: x / sqrt(mean(x^2) + eps) over the last dimension, in x's dtype.
INTROSPECT_EXPORT torch::Tensor rms_normalize(const torch::Tensor& x, double eps);

/// The denominator that rms_norm divides by, sqrt(mean(x^2) + eps), in float32.
///
/// Shapes: x [..., D] -> [..., 1].
INTROSPECT_EXPORT torch::Tensor rms_scale(const torch::Tensor& x, double eps);

}  // namespace introspect::ops

#pragma once

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// Root-mean-square norm over the last dimension, as in Llama and Qwen2.
///
/// Computed in float32, for float64 input too, and rounded to x's dtype before the weight is applied: the checkpoints
/// were trained so, and float64 runs stay comparable with transformers'. float32 and bfloat16 on the CPU take a kernel
/// of our own that reads x once, unless a gradient is asked for.
///
/// Shapes: x [..., D], weight [D] -> [..., D]. eps is added to the mean square.
/// Throws ShapeError if weight is not [D].
/// Source: Zhang & Sennrich 2019, arXiv:1910.07467; matches transformers' LlamaRMSNorm, in float64 bit for bit.
INTROSPECT_EXPORT torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

/// rms_norm before its weight: x / sqrt(mean(x^2) + eps) over the last dimension, in x's dtype.
INTROSPECT_EXPORT torch::Tensor rms_normalize(const torch::Tensor& x, double eps);

/// The denominator that rms_norm divides by, sqrt(mean(x^2) + eps), in float32.
///
/// Shapes: x [..., D] -> [..., 1].
INTROSPECT_EXPORT torch::Tensor rms_scale(const torch::Tensor& x, double eps);

/// Root-mean-square norm as in Gemma: times the weight in float32, and only then rounded to x's dtype.
///
/// Shapes: x [..., D], weight float32 [D], one more than what the checkpoint stores -> [..., D].
/// Throws ShapeError if weight is not [D].
/// Source: matches transformers' Gemma2RMSNorm.
INTROSPECT_EXPORT torch::Tensor gemma_rms_norm(const torch::Tensor& x, const torch::Tensor& weight,
                                               double eps);

/// Layer norm over the last dimension, computed in x's dtype or in float32 where that is narrower.
///
/// Shapes: x [..., D], weight and bias [D] -> [..., D]. eps is added to the variance.
/// Source: Ba et al. 2016, arXiv:1607.06450.
INTROSPECT_EXPORT torch::Tensor layer_norm(const torch::Tensor& x, const torch::Tensor& weight,
                                           const torch::Tensor& bias, double eps);

/// layer_norm before its weight and bias: (x - mean(x)) / layer_scale(x), in x's dtype.
INTROSPECT_EXPORT torch::Tensor layer_normalize(const torch::Tensor& x, double eps);

/// The denominator of layer_norm, sqrt(var(x) + eps), float32, or float64 for float64 input.
///
/// Shapes: x [..., D] -> [..., 1].
INTROSPECT_EXPORT torch::Tensor layer_scale(const torch::Tensor& x, double eps);

}  // namespace introspect::ops

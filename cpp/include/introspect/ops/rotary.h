#pragma once

#include <string>
#include <utility>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// How the rotary frequencies are changed for longer contexts.
struct RotaryScaling {
  /// "none"; "linear": all frequencies divided by factor; "llama3": low frequencies divided by factor, high ones
  /// kept, those between interpolated (Llama 3.1, arXiv:2407.21783 and its config.json).
  std::string type = "none";
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  double original_max_position = 8192.0;
};

/// The angular frequencies of rotary embedding, float32 [d_rotary / 2].
///
/// Computed in float32 in the order of operations of transformers, whose checkpoints were trained with those bits.
/// Source: Su et al. 2021, arXiv:2104.09864. Throws ConfigError for an unknown scaling type or an odd d_rotary.
INTROSPECT_EXPORT torch::Tensor rotary_frequencies(int64_t d_rotary, double base,
                                                   const RotaryScaling& scaling);

/// Cosines and sines of position * frequency in `dtype`, each [B, T, d_rotary / 2] for positions [B, T].
INTROSPECT_EXPORT std::pair<torch::Tensor, torch::Tensor> rotary_angles(const torch::Tensor& positions_BT,
                                                                        const torch::Tensor& frequencies,
                                                                        torch::ScalarType dtype);

/// Rotates each pair (x[i], x[i + K2]) by its position's angle (the half-split layout of Hugging Face checkpoints);
/// what lies after the 2 * K2 rotated elements of a head stays as it is.
///
/// Shapes: x [B, T, H, K], cos and sin [B or 1, T, K2] -> [B, T, H, K], stored head by head ([B, H, T, K] is its
/// contiguous transpose), which is what attention wants.
/// Throws ShapeError for other shapes.
INTROSPECT_EXPORT torch::Tensor apply_rotary(const torch::Tensor& x_BTHK, const torch::Tensor& cos_BTK2,
                                             const torch::Tensor& sin_BTK2);

}  // namespace introspect::ops

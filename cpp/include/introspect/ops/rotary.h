#pragma once

#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// How the rotary frequencies are changed for longer contexts.
struct RotaryScaling {
  /// "none"; "linear": all frequencies divided by factor; "llama3": low frequencies divided by factor, high ones
  /// kept, those between interpolated (Llama 3.1, arXiv:2407.21783 and its config.json); "yarn": likewise, between
  /// beta_slow and beta_fast turns within original_max_position (Peng et al. 2023, arXiv:2309.00071); "longrope": each
  /// divided by its own factor (Ding et al. 2024, arXiv:2402.13753); "dynamic": the base grows with the text.
  std::string type = "none";
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  double original_max_position = 8192.0;  // llama3, yarn, longrope, dynamic: positions before scaling

  double attention_factor = 1.0;             // yarn, longrope: cosines and sines are multiplied by it
  double beta_fast = 32.0, beta_slow = 1.0;  // yarn
  bool truncate = true;                      // yarn: the bounds of the interpolation are whole dimensions
  std::vector<double> short_factor, long_factor;  // longrope: one for each frequency

  /// longrope, dynamic: the longest text. Beyond original_max_position, longrope takes long_factor and dynamic the base
  /// of a text of this length, for every text, so that a cache and a batch are of one kind.
  double longest = 0;
};

/// The angular frequencies of rotary embedding, float32 [d_rotary / 2].
///
/// Computed in float32 in the order of operations of transformers, whose checkpoints were trained with those bits.
/// Source: Su et al. 2021, arXiv:2104.09864. Throws ConfigError for an unknown scaling type, an odd d_rotary or factors
/// of longrope that are not as many as the frequencies.
INTROSPECT_EXPORT torch::Tensor rotary_frequencies(int64_t d_rotary, double base,
                                                   const RotaryScaling& scaling);

/// Cosines and sines of position * frequency, times `factor`, in `dtype`: each [B, T, d_rotary / 2] for positions [B, T].
INTROSPECT_EXPORT std::pair<torch::Tensor, torch::Tensor> rotary_angles(const torch::Tensor& positions_BT,
                                                                        const torch::Tensor& frequencies,
                                                                        torch::ScalarType dtype,
                                                                        double factor = 1);

/// Rotates each pair (x[i], x[i + K2]) by its position's angle (the half-split layout of Hugging Face checkpoints);
/// what lies after the 2 * K2 rotated elements of a head stays as it is. Where the angles are of a wider dtype than x,
/// the rotation is made in it and rounded once.
///
/// Shapes: x [B, T, H, K], cos and sin [B or 1, T, K2] -> [B, T, H, K], stored head by head ([B, H, T, K] is its
/// contiguous transpose), which is what attention wants.
/// Throws ShapeError for other shapes.
INTROSPECT_EXPORT torch::Tensor apply_rotary(const torch::Tensor& x_BTHK, const torch::Tensor& cos_BTK2,
                                             const torch::Tensor& sin_BTK2);

}  // namespace introspect::ops

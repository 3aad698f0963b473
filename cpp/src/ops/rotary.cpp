#include "introspect/ops/rotary.h"

#include <cmath>
#include <numbers>

#include "introspect/core/check.h"

namespace introspect::ops {

namespace {

torch::Tensor llama3_frequencies(const torch::Tensor& frequencies, const RotaryScaling& s) {
  const double low_wavelength = s.original_max_position / s.low_freq_factor;
  const double high_wavelength = s.original_max_position / s.high_freq_factor;
  const auto wavelength = 2 * std::numbers::pi / frequencies;
  const auto slowed = at::where(wavelength > low_wavelength, frequencies / s.factor, frequencies);
  const auto smooth =
      (s.original_max_position / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  const auto interpolated = (1 - smooth) * slowed / s.factor + smooth * slowed;
  const auto between = ~(wavelength < high_wavelength) & ~(wavelength > low_wavelength);
  return at::where(between, interpolated, slowed);
}

}  // namespace

torch::Tensor rotary_frequencies(int64_t d_rotary, double base, const RotaryScaling& scaling) {
  check<ConfigError>(d_rotary > 0 && d_rotary % 2 == 0, "rotary_frequencies: the width must be even, got ",
                     d_rotary);
  const auto exponents = at::arange(0, d_rotary, 2, torch::kLong).to(torch::kFloat32) / d_rotary;
  const auto frequencies = 1.0 / at::pow(base, exponents);
  if (scaling.type == "none") return frequencies;
  if (scaling.type == "linear") return frequencies / scaling.factor;
  check<ConfigError>(scaling.type == "llama3",
                     "rotary_frequencies: scaling must be none, linear or llama3, got ", scaling.type);
  return llama3_frequencies(frequencies, scaling);
}

std::pair<torch::Tensor, torch::Tensor> rotary_angles(const torch::Tensor& positions_BT,
                                                      const torch::Tensor& frequencies,
                                                      torch::ScalarType dtype) {
  const auto angles = positions_BT.to(torch::kFloat32).unsqueeze(-1) * frequencies;
  return {angles.cos().to(dtype), angles.sin().to(dtype)};
}

torch::Tensor apply_rotary(const torch::Tensor& x_BTHK, const torch::Tensor& cos_BTK2,
                           const torch::Tensor& sin_BTK2) {
  const int64_t half = cos_BTK2.size(-1);
  check<ShapeError>(x_BTHK.dim() == 4 && x_BTHK.size(3) >= 2 * half && cos_BTK2.size(1) == x_BTHK.size(1),
                    "apply_rotary: x must be [batch, ", cos_BTK2.size(1), ", heads, at least ", 2 * half,
                    "], got ", x_BTHK.sizes());
  const auto x_BHTK = x_BTHK.transpose(1, 2);
  const auto cos = cos_BTK2.unsqueeze(1), sin = sin_BTK2.unsqueeze(1);
  const auto a = x_BHTK.narrow(3, 0, half), b = x_BHTK.narrow(3, half, half);
  const auto rest = x_BHTK.narrow(3, 2 * half, x_BHTK.size(3) - 2 * half);
  return at::cat({a * cos - b * sin, b * cos + a * sin, rest}, 3).transpose(1, 2);
}

}  // namespace introspect::ops

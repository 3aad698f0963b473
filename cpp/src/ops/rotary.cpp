#include "introspect/ops/rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/parallel.h"
#include "core/reused_memory.h"
#include "introspect/core/check.h"
#include "ops/needs_grad.h"
#include "ops/vector.h"

namespace introspect::ops {

namespace {

torch::Tensor llama3_frequencies(const torch::Tensor& frequencies, const RotaryScaling& s) {
  const double low_wavelength = s.original_max_position / s.low_freq_factor;
  const double high_wavelength = s.original_max_position / s.high_freq_factor;
  // A number over a tensor is, in torch's Python, the number times its reciprocal: the same float32 roundings.
  const auto wavelength = frequencies.reciprocal() * (2 * std::numbers::pi);
  const auto slowed = at::where(wavelength > low_wavelength, frequencies / s.factor, frequencies);
  const auto smooth = (wavelength.reciprocal() * s.original_max_position - s.low_freq_factor) /
                      (s.high_freq_factor - s.low_freq_factor);
  const auto interpolated = (1 - smooth) * slowed / s.factor + smooth * slowed;
  const auto between = ~(wavelength < high_wavelength) & ~(wavelength > low_wavelength);
  return at::where(between, interpolated, slowed);
}

/// Between those that turn more than beta_fast times within the original length, which are kept, and those that turn
/// less than beta_slow times, which are divided by the factor, a ramp over the dimensions.
torch::Tensor yarn_frequencies(const torch::Tensor& inverse_frequencies, int64_t d_rotary, double base,
                               const RotaryScaling& s) {
  const auto dimension = [&](double turns) {
    return static_cast<double>(d_rotary) *
           std::log(s.original_max_position / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
  };
  double low = dimension(s.beta_fast), high = dimension(s.beta_slow);
  if (s.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, static_cast<double>(d_rotary - 1));
  if (low == high) high += 0.001;
  const auto ramp = ((at::arange(d_rotary / 2, torch::kFloat32) - low) / (high - low)).clamp(0, 1);
  const auto kept = 1 - ramp;
  const auto slowed = (inverse_frequencies * s.factor).reciprocal();
  return slowed * (1 - kept) + inverse_frequencies.reciprocal() * kept;
}

torch::Tensor longrope_frequencies(const torch::Tensor& inverse_frequencies, const RotaryScaling& s) {
  const auto& factors = s.longest > s.original_max_position ? s.long_factor : s.short_factor;
  check<ConfigError>(static_cast<int64_t>(factors.size()) == inverse_frequencies.numel(),
                     "rotary_frequencies: longrope must have ", inverse_frequencies.numel(), " factors, got ",
                     factors.size());
  return (torch::tensor(factors, torch::kFloat32) * inverse_frequencies).reciprocal();
}

/// The base for which the slowest frequency turns as far over the longest text as it did over the original one, in
/// float32 as transformers computes it.
torch::Tensor dynamic_base(int64_t d_rotary, double base, const RotaryScaling& s) {
  check<ConfigError>(d_rotary > 2, "rotary_frequencies: dynamic scaling needs a width above 2, got ",
                     d_rotary);
  if (s.longest <= s.original_max_position) return at::full({}, base, torch::kFloat32);
  const double width = static_cast<double>(d_rotary);
  const auto longest = at::full({}, s.longest, torch::kFloat32);
  return (longest * s.factor / s.original_max_position - (s.factor - 1)).pow(width / (width - 2)) * base;
}

}  // namespace

torch::Tensor rotary_frequencies(int64_t d_rotary, double base, const RotaryScaling& scaling) {
  check<ConfigError>(d_rotary > 0 && d_rotary % 2 == 0, "rotary_frequencies: the width must be even, got ",
                     d_rotary);
  // Loops here and below: the code of two operators that nothing else of a pass needs would stay in memory, 0.6 MB.
  const auto exponents = at::empty({d_rotary / 2}, torch::kFloat32);
  for (int64_t i = 0; i < d_rotary / 2; ++i)
    exponents.mutable_data_ptr<float>()[i] = static_cast<float>(2 * i) / static_cast<float>(d_rotary);
  const auto powers = scaling.type == "dynamic" ? dynamic_base(d_rotary, base, scaling).pow(exponents)
                                                : at::pow(base, exponents);
  if (scaling.type == "yarn") return yarn_frequencies(powers, d_rotary, base, scaling);
  if (scaling.type == "longrope") return longrope_frequencies(powers, scaling);
  const auto frequencies = at::empty({d_rotary / 2}, torch::kFloat32);
  const float* power = powers.const_data_ptr<float>();
  for (int64_t i = 0; i < d_rotary / 2; ++i) frequencies.mutable_data_ptr<float>()[i] = 1.0f / power[i];
  if (scaling.type == "none" || scaling.type == "dynamic") return frequencies;
  if (scaling.type == "linear") return frequencies / scaling.factor;
  check<ConfigError>(
      scaling.type == "llama3",
      "rotary_frequencies: scaling must be none, linear, llama3, yarn, longrope or dynamic, got ",
      scaling.type);
  return llama3_frequencies(frequencies, scaling);
}

std::pair<torch::Tensor, torch::Tensor> rotary_angles(const torch::Tensor& positions_BT,
                                                      const torch::Tensor& frequencies,
                                                      torch::ScalarType dtype, double factor) {
  const auto angles = positions_BT.to(torch::kFloat32).unsqueeze(-1) * frequencies;
  auto cos = angles.cos(), sin = angles.sin();
  if (factor != 1) cos.mul_(factor), sin.mul_(factor);
  return {cos.to(dtype), sin.to(dtype)};
}

namespace {

constexpr int64_t kElementsPerTask = 1 << 15;

struct Rotation {
  int64_t T, H, K, half;                  // half: K2, the pairs that are rotated
  int64_t batch_stride, position_stride;  // of x; heads and their elements are dense
  int64_t angle_stride;                   // from one row of the batch to the next; 0 where they share angles
};

/// The heads of tokens [first, last), numbered as [B, T]; each product rounded to T, as transformers rounds.
template <typename V, typename T>
INTROSPECT_INLINE void rotate_tokens(const T* x, const T* cos, const T* sin, T* out, const Rotation& r,
                                     int64_t first, int64_t last) {
  const auto rounded = [](const auto& v) INTROSPECT_INLINED { return V::template rounded_to<T>(v); };
  const auto product = [](T a, T b) {
    return static_cast<float>(static_cast<T>(static_cast<float>(a) * static_cast<float>(b)));
  };
  for (int64_t token = first; token < last; ++token) {
    const int64_t b = token / r.T, t = token % r.T;
    const T* const in = x + b * r.batch_stride + t * r.position_stride;
    const T* const c = cos + b * r.angle_stride + t * r.half;
    const T* const s = sin + b * r.angle_stride + t * r.half;
    T* const to = out + (b * r.H * r.T + t) * r.K;
    int64_t i = 0;
    for (; i + V::width <= r.half; i += V::width) {
      const auto cosine = V::load(c + i), sine = V::load(s + i);
      for (int64_t h = 0; h < r.H; ++h) {
        const T* head = in + h * r.K + i;
        T* rotated = to + h * r.T * r.K + i;
        const auto u = V::load(head), v = V::load(head + r.half);
        V::store(rotated, rounded(u * cosine) - rounded(v * sine));
        V::store(rotated + r.half, rounded(v * cosine) + rounded(u * sine));
      }
    }
    if (i == r.half && 2 * r.half == r.K) continue;
    for (int64_t h = 0; h < r.H; ++h) {
      const T* head = in + h * r.K;
      T* rotated = to + h * r.T * r.K;
      for (int64_t j = i; j < r.half; ++j) {
        const T u = head[j], v = head[r.half + j];
        rotated[j] = static_cast<T>(product(u, c[j]) - product(v, s[j]));
        rotated[r.half + j] = static_cast<T>(product(v, c[j]) + product(u, s[j]));
      }
      std::copy(head + 2 * r.half, head + r.K, rotated + 2 * r.half);
    }
  }
}

bool has_kernel(const torch::Tensor& x_BTHK, const torch::Tensor& cos, const torch::Tensor& sin) {
  const auto dtype = x_BTHK.scalar_type();
  return x_BTHK.is_cpu() && (dtype == torch::kFloat32 || dtype == torch::kBFloat16) &&
         cos.scalar_type() == dtype && cos.is_contiguous() && sin.is_contiguous() && x_BTHK.numel() > 0 &&
         x_BTHK.stride(3) == 1 && x_BTHK.stride(2) == x_BTHK.size(3) && !needs_grad(x_BTHK);
}

template <typename T>
torch::Tensor rotated(const torch::Tensor& x_BTHK, const torch::Tensor& cos, const torch::Tensor& sin) {
  const int64_t B = x_BTHK.size(0), T_ = x_BTHK.size(1), H = x_BTHK.size(2), K = x_BTHK.size(3);
  const int64_t half = cos.size(-1);
  const Rotation r = {T_, H, K, half, x_BTHK.stride(0), x_BTHK.stride(1), cos.size(0) == 1 ? 0 : T_ * half};
  auto out_BHTK = reused_empty({B, H, T_, K}, x_BTHK.options());
  T* out = out_BHTK.template mutable_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (H * K));
  parallel_for(0, B * T_, grain, [&](int64_t first, int64_t last) {
    with_rounding_lanes([&](auto lanes) INTROSPECT_INLINED {
      rotate_tokens<decltype(lanes)>(x_BTHK.const_data_ptr<T>(), cos.const_data_ptr<T>(),
                                     sin.const_data_ptr<T>(), out, r, first, last);
    });
  });
  return out_BHTK.transpose(1, 2);
}

/// Four kernels and no copy of the halves: what a device does is mostly to wait for the next one.
torch::Tensor rotated_on_device(const torch::Tensor& x_BTHK, const torch::Tensor& cos_BT1K2,
                                const torch::Tensor& sin_BT1K2) {
  const int64_t half = cos_BT1K2.size(-1), rest = x_BTHK.size(3) - 2 * half;
  const auto a = x_BTHK.narrow(3, 0, half), b = x_BTHK.narrow(3, half, half);
  auto out_BTHK = at::empty(x_BTHK.sizes(), x_BTHK.options());
  auto to_a = out_BTHK.narrow(3, 0, half), to_b = out_BTHK.narrow(3, half, half);
  at::addcmul_out(to_a, a * cos_BT1K2, b, sin_BT1K2, -1);
  at::addcmul_out(to_b, b * cos_BT1K2, a, sin_BT1K2, 1);
  if (rest > 0) out_BTHK.narrow(3, 2 * half, rest).copy_(x_BTHK.narrow(3, 2 * half, rest));
  return out_BTHK;
}

}  // namespace

torch::Tensor apply_rotary(const torch::Tensor& x_BTHK, const torch::Tensor& cos_BTK2,
                           const torch::Tensor& sin_BTK2) {
  const int64_t half = cos_BTK2.size(-1);
  check<ShapeError>(x_BTHK.dim() == 4 && x_BTHK.size(3) >= 2 * half && cos_BTK2.size(1) == x_BTHK.size(1),
                    "apply_rotary: x must be [batch, ", cos_BTK2.size(1), ", heads, at least ", 2 * half,
                    "], got ", x_BTHK.sizes());
  check<ShapeError>(cos_BTK2.dim() == 3 && sin_BTK2.sizes() == cos_BTK2.sizes() &&
                        (cos_BTK2.size(0) == 1 || cos_BTK2.size(0) == x_BTHK.size(0)),
                    "apply_rotary: cos and sin must be [1 or ", x_BTHK.size(0), ", positions, pairs], got ",
                    cos_BTK2.sizes(), " and ", sin_BTK2.sizes());
  if (has_kernel(x_BTHK, cos_BTK2, sin_BTK2))
    return x_BTHK.scalar_type() == torch::kFloat32 ? rotated<float>(x_BTHK, cos_BTK2, sin_BTK2)
                                                   : rotated<c10::BFloat16>(x_BTHK, cos_BTK2, sin_BTK2);
  if (!x_BTHK.is_cpu() && !needs_grad(x_BTHK) && cos_BTK2.scalar_type() == x_BTHK.scalar_type())
    return rotated_on_device(x_BTHK, cos_BTK2.unsqueeze(2), sin_BTK2.unsqueeze(2));
  const auto x_BHTK = x_BTHK.transpose(1, 2);
  const auto cos = cos_BTK2.unsqueeze(1), sin = sin_BTK2.unsqueeze(1);
  const auto a = x_BHTK.narrow(3, 0, half), b = x_BHTK.narrow(3, half, half);
  const auto rest = x_BHTK.narrow(3, 2 * half, x_BHTK.size(3) - 2 * half);
  const auto dtype = x_BTHK.scalar_type();
  return at::cat({(a * cos - b * sin).to(dtype), (b * cos + a * sin).to(dtype), rest}, 3).transpose(1, 2);
}

}  // namespace introspect::ops

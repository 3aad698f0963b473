#include "statistics/distributions.h"

#include <cmath>
#include <limits>

#include <torch/types.h>

namespace introspect::statistics {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The continued fraction of the incomplete beta function (DLMF 8.17.22) by Lentz's method; quick for x < (a + 1) / (a + b + 2).
double beta_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300;
  const auto term = [&](int n) {
    const double m = n / 2;
    if (n % 2 == 0) return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
  };
  double c = 1, d = 0, fraction = 1;
  for (int n = 1; n < 2000; ++n) {
    d = 1 + term(n) * d;
    c = 1 + term(n) / c;
    if (std::abs(d) < kTiny) d = kTiny;
    if (std::abs(c) < kTiny) c = kTiny;
    d = 1 / d;
    const double step = c * d;
    fraction *= step;
    if (std::abs(step - 1) < 1e-16) break;
  }
  return 1 / fraction;
}

/// I_x(a, b); `rest` is 1 - x, given apart so that neither end loses digits.
double regularised_beta(double a, double b, double x, double rest) {
  if (x <= 0) return 0;
  if (rest <= 0) return 1;
  const double scale =
      std::exp(a * std::log(x) + b * std::log(rest) + std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b));
  if (x < (a + 1) / (a + b + 2)) return scale * beta_fraction(a, b, x) / a;
  return 1 - scale * beta_fraction(b, a, rest) / b;
}

/// The x above 0 at which a function that rises with x reaches 0.
template <typename Function>
double positive_root(const Function& rising) {
  double low = 0, high = 1;
  while (rising(high) < 0 && high < 1e300) high *= 2;
  for (int i = 0; i < 200; ++i) {
    const double middle = low + (high - low) / 2;
    if (middle == low || middle == high) break;
    (rising(middle) < 0 ? low : high) = middle;
  }
  return low + (high - low) / 2;
}

}  // namespace

double student_cdf(double t, double degrees) {
  if (std::isinf(t)) return t < 0 ? 0 : 1;
  const double square = t * t, sum = degrees + square;
  const double tail = regularised_beta(degrees / 2, 0.5, degrees / sum, square / sum) / 2;
  return t < 0 ? tail : 1 - tail;
}

double student_quantile(double p, double degrees) {
  if (p <= 0) return -kInfinity;
  if (p >= 1) return kInfinity;
  if (p == 0.5) return 0;
  const double tail = p < 0.5 ? p : 1 - p;
  const double t = positive_root([&](double x) { return tail - student_cdf(-x, degrees); });
  return p < 0.5 ? -t : t;
}

double chi_squared_cdf(double x, double degrees) {
  if (x <= 0) return 0;
  const auto half = [](double value) { return torch::tensor(value / 2, torch::kFloat64); };
  return at::special_gammainc(half(degrees), half(x)).item<double>();
}

double chi_squared_quantile(double p, double degrees) {
  if (p <= 0) return 0;
  if (p >= 1) return kInfinity;
  return positive_root([&](double x) { return chi_squared_cdf(x, degrees) - p; });
}

}  // namespace introspect::statistics

#include "introspect/statistics/meta_analysis.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "introspect/core/check.h"
#include "statistics/distributions.h"
#include "statistics/samples.h"

namespace introspect::statistics {
namespace {

/// Effects y with variances v.
class Studies {
 public:
  Studies(std::span<const double> effects, std::span<const double> errors)
      : y_(effects.begin(), effects.end()) {
    for (const double error : errors) v_.push_back(error * error);
  }

  double degrees() const { return static_cast<double>(y_.size()) - 1; }

  std::vector<double> weights(double tau_squared) const {
    std::vector<double> out;
    for (const double v : v_) out.push_back(1 / (v + tau_squared));
    return out;
  }

  double mean(const std::vector<double>& w) const {
    double sum = 0, total = 0;
    for (size_t i = 0; i < y_.size(); ++i) {
      sum += w[i] * y_[i];
      total += w[i];
    }
    return sum / total;
  }

  /// Q(tau^2) = sum of w (y - mean)^2, which falls with tau^2.
  double q(double tau_squared) const {
    const auto w = weights(tau_squared);
    const double center = mean(w);
    double sum = 0;
    for (size_t i = 0; i < y_.size(); ++i) sum += w[i] * (y_[i] - center) * (y_[i] - center);
    return sum;
  }

  /// The variance that a usual study has: (k - 1) sum w / ((sum w)^2 - sum w^2), w = 1 / v.
  double typical_variance() const {
    double sum = 0, squares = 0;
    for (const double v : v_) {
      sum += 1 / v;
      squares += 1 / (v * v);
    }
    return degrees() * sum / (sum * sum - squares);
  }

  /// Twice the restricted log-likelihood, up to a constant.
  double restricted_likelihood(double tau_squared) const {
    const auto w = weights(tau_squared);
    double logs = 0, total = 0;
    for (const double weight : w) {
      logs += std::log(weight);
      total += weight;
    }
    return logs - std::log(total) - q(tau_squared);
  }

  /// Twice its derivative.
  double restricted_score(double tau_squared) const {
    const auto w = weights(tau_squared);
    const double center = mean(w);
    double total = 0, squares = 0, spread = 0;
    for (size_t i = 0; i < y_.size(); ++i) {
      total += w[i];
      squares += w[i] * w[i];
      spread += w[i] * w[i] * (y_[i] - center) * (y_[i] - center);
    }
    return spread - total + squares / total;
  }

  /// No estimate of tau^2 is above this: all the spread that is seen, and the largest error.
  double ceiling() const {
    const double center = mean_of(y_);
    double sum = 0;
    for (const double y : y_) sum += (y - center) * (y - center);
    return sum + *std::ranges::max_element(v_);
  }

 private:
  std::vector<double> y_, v_;
};

/// The x between the ends at which a function that falls with x reaches 0.
template <typename Function>
double falling_root(const Function& falling, double low, double high) {
  for (int i = 0; i < 200; ++i) {
    const double middle = low + (high - low) / 2;
    (falling(middle) > 0 ? low : high) = middle;
  }
  return low + (high - low) / 2;
}

/// The tau^2 >= 0 at which Q is `target`; 0 where it is below that throughout.
double tau_squared_of_q(const Studies& studies, double target) {
  if (studies.q(0) <= target) return 0;
  double high = studies.ceiling();
  while (studies.q(high) > target && high < 1e300) high *= 2;
  return falling_root([&](double tau_squared) { return studies.q(tau_squared) - target; }, 0, high);
}

/// The likelihood can have several peaks: each is where the score falls through 0 between two steps of a grid.
double reml(const Studies& studies) {
  constexpr int kSteps = 400;
  const double ceiling = studies.ceiling();
  const auto place = [&](int i) { return ceiling * std::pow(static_cast<double>(i) / kSteps, 3); };
  const auto score = [&](double tau_squared) { return studies.restricted_score(tau_squared); };
  double best = 0, height = studies.restricted_likelihood(0);
  for (int i = 0; i < kSteps; ++i) {
    if (score(place(i)) <= 0 || score(place(i + 1)) > 0) continue;
    const double peak = falling_root(score, place(i), place(i + 1));
    if (const double here = studies.restricted_likelihood(peak); here > height) {
      best = peak;
      height = here;
    }
  }
  return best;
}

double tau_squared_of(const Studies& studies, Heterogeneity method) {
  if (method == Heterogeneity::kReml) return reml(studies);
  if (method == Heterogeneity::kPauleMandel) return tau_squared_of_q(studies, studies.degrees());
  // The typical variance is (k - 1) / (sum w - sum w^2 / sum w).
  const double moments = (studies.q(0) - studies.degrees()) * studies.typical_variance() / studies.degrees();
  return std::max(0.0, moments);
}

}  // namespace

MetaAnalysis meta_analysis(std::span<const double> effects, std::span<const double> standard_errors,
                           const MetaAnalysisOptions& options) {
  const char* who = "meta_analysis";
  check_sample(who, "effects", effects, 2);
  check_sample(who, "standard errors", standard_errors, 1);
  check_confidence(who, options.confidence);
  check<std::invalid_argument>(standard_errors.size() == effects.size(), who, ": ", effects.size(),
                               " standard errors required, one for each effect, got ",
                               standard_errors.size());
  for (const double error : standard_errors)
    check<std::invalid_argument>(error > 0, who, ": standard errors must be above 0, got ", error);

  const Studies studies(effects, standard_errors);
  const double degrees = studies.degrees(), upper = (1 + options.confidence) / 2;
  MetaAnalysis out;
  out.q = studies.q(0);
  out.p_q = 1 - chi_squared_cdf(out.q, degrees);
  const double tau_squared = out.tau_squared = tau_squared_of(studies, options.method);
  out.tau_squared_interval = {tau_squared_of_q(studies, chi_squared_quantile(upper, degrees)),
                              tau_squared_of_q(studies, chi_squared_quantile(1 - upper, degrees))};
  const double typical = studies.typical_variance();
  const auto share = [&](double between) { return between / (between + typical); };
  out.i_squared = share(tau_squared);
  out.i_squared_interval = {share(out.tau_squared_interval.low), share(out.tau_squared_interval.high)};

  out.weights = studies.weights(tau_squared);
  out.effect.value = studies.mean(out.weights);
  double total = 0;
  for (const double w : out.weights) total += w;
  for (double& w : out.weights) w /= total;
  double variance = 1 / total;
  if (options.hartung_knapp) variance *= std::max(1.0, studies.q(tau_squared) / degrees);
  const double error = out.effect.standard_error = std::sqrt(variance);
  const double z = -std::abs(out.effect.value) / error;
  out.p = 2 * (options.hartung_knapp ? student_cdf(z, degrees) : normal_cdf(z));
  const double reach =
      (options.hartung_knapp ? student_quantile(upper, degrees) : normal_quantile(upper)) * error;
  out.effect.interval = {out.effect.value - reach, out.effect.value + reach};
  const double wide =
      degrees < 2 ? std::nan("") : student_quantile(upper, degrees - 1) * std::sqrt(tau_squared + variance);
  out.prediction = {out.effect.value - wide, out.effect.value + wide};
  return out;
}

}  // namespace introspect::statistics

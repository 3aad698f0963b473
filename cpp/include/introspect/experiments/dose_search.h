#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "introspect/export.h"

namespace introspect::experiments {

/// The search for the strength that gives a dose, step by step: what to measure next, and what came out.
///
///     DoseSearch search(0.5, 0.1, 1.0, 0.02);  // a dose of 0.5, near strength 0.1
///     while (!search.is_done() && !search.is_unreachable()) {
///       std::map<double, double> doses;
///       for (const double strength : search.next()) doses[strength] = measure(strength);
///       search.take(doses);
///     }
///
/// The logarithm of the dose is interpolated over the logarithm of the strength. Where the dose does not rise with the
/// strength throughout, what is found is the smallest strength that reaches the target, as far as the search has seen.
class DoseSearch {
 public:
  /// `start`: the first strength to try; 0: a grid of ratio 2 from `scale` / 64 on. `scale`: a strength that does much
  /// (one median residual norm, say): 1e-7 to 32 times it are tried. `tolerance`: how far off the dose may be, as a share
  /// of the target. Throws std::invalid_argument for numbers that are not finite and above 0.
  INTROSPECT_EXPORT DoseSearch(double target, double start, double scale, double tolerance);

  /// The strengths to measure next, ascending.
  INTROSPECT_EXPORT std::vector<double> next() const;
  /// {strength: dose} of all that `next` has asked for. NaN is a dose that counts as none.
  INTROSPECT_EXPORT void take(const std::map<double, double>& doses);

  bool is_done() const { return found_ >= 0; }
  /// No strength has the dose.
  bool is_unreachable() const { return is_unreachable_; }
  /// The strength; negative before it is found.
  double found() const { return found_; }
  double target() const { return target_; }
  int64_t n_measured() const { return static_cast<int64_t>(doses_.size()); }
  /// {strength: dose} of everything that was measured.
  const std::map<double, double>& doses() const { return doses_; }
  /// Whether more strength gave more dose wherever it was measured.
  INTROSPECT_EXPORT bool is_monotone() const;
  /// "1e-07 (at strength 2e-05) to 14.2 (at 8)": the doses that were seen.
  INTROSPECT_EXPORT std::string reached() const;

 private:
  using Doses = std::map<double, double>;

  std::pair<Doses::const_iterator, Doses::const_iterator> bracket() const;
  double by_slope(const Doses::value_type& nearest) const;
  double between(const Doses::value_type& below, const Doses::value_type& above) const;

  double target_, start_, scale_, tolerance_;
  Doses doses_;
  std::vector<double> near_;
  int64_t rounds_ = 0;
  double found_ = -1;
  bool is_unreachable_ = false;
};

}  // namespace introspect::experiments

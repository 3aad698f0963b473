#include "introspect/experiments/dose_search.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "introspect/core/check.h"

namespace introspect::experiments {
namespace {

// In units of the scale.
constexpr double kFirst = 1.0 / 64, kFirstRound = 0.5, kLargest = 32.0, kSmallest = 1e-7;

void check_positive(const char* name, double value) {
  check<std::invalid_argument>(std::isfinite(value) && value > 0, "DoseSearch: ", name,
                               " must be a number above 0, got ", value);
}

}  // namespace

DoseSearch::DoseSearch(double target, double start, double scale, double tolerance)
    : target_(target), start_(start), scale_(scale), tolerance_(tolerance) {
  check_positive("target", target);
  check_positive("scale", scale);
  check_positive("tolerance", tolerance);
  if (start != 0) check_positive("start", start);
}

std::vector<double> DoseSearch::next() const {
  if (doses_.empty() && start_ > 0) return {start_};
  if (doses_.empty()) {
    std::vector<double> out;
    for (double s = kFirst; s <= kFirstRound; s *= 2) out.push_back(s * scale_);
    return out;
  }
  const auto [below, above] = bracket();
  if (above == doses_.end()) {
    const auto& largest = *doses_.rbegin();
    return {largest.first * (start_ > 0 ? std::clamp(by_slope(largest), 1.01, 4.0) : 2.0)};
  }
  if (below == doses_.end()) return {above->first * std::clamp(by_slope(*above), 1e-3, 0.99)};
  return {between(*below, *above)};
}

void DoseSearch::take(const std::map<double, double>& doses) {
  check<std::invalid_argument>(!doses.empty(),
                               "DoseSearch: doses of what was asked for are needed, got none");
  for (const auto& [strength, dose] : doses) {
    doses_[strength] = dose;
    if (std::abs(dose / target_ - 1) <= tolerance_) near_.push_back(strength);
  }
  ++rounds_;
  const auto [below, above] = bracket();
  // The first strength that is near enough, unless the dose has exceeded the target before it.
  for (const auto strength : near_)
    if ((above == doses_.end() || strength <= above->first) && (found_ < 0 || strength < found_))
      found_ = strength;
  if (found_ >= 0) return;
  if (above == doses_.end())
    is_unreachable_ = doses_.rbegin()->first >= kLargest * scale_ * 0.999;
  else if (below == doses_.end())
    is_unreachable_ = above->first <= kSmallest * scale_;
  else if (above->first / below->first - 1 < 1e-6)
    found_ = above->first;  // it jumps there
}

bool DoseSearch::is_monotone() const {
  double most = 0;
  for (const auto& [strength, dose] : doses_) {
    if (dose < most * (1 - 1e-4) - 1e-9) return false;
    most = std::max(most, dose);
  }
  return true;
}

std::string DoseSearch::reached() const {
  auto least = doses_.end(), most = doses_.end();
  for (auto it = doses_.begin(); it != doses_.end(); ++it) {
    if (!std::isfinite(it->second)) continue;
    if (least == doses_.end() || it->second < least->second) least = it;
    if (most == doses_.end() || it->second > most->second) most = it;
  }
  if (most == doses_.end()) return "no number that is finite";
  return concat(least->second, " (at strength ", least->first, ") to ", most->second, " (at ", most->first,
                ")");
}

/// The neighbours between which the dose first exceeds the target; `below` is the end where the least strength does.
std::pair<DoseSearch::Doses::const_iterator, DoseSearch::Doses::const_iterator> DoseSearch::bracket() const {
  auto below = doses_.end();
  for (auto it = doses_.begin(); it != doses_.end(); ++it) {
    if (!(it->second < target_)) {
      if (std::isnan(it->second)) continue;
      return {below, it};
    }
    below = it;
  }
  return {doses_.end(), doses_.end()};
}

/// By what factor the strength must change for the dose to reach the target: as at the two least strengths (or the two
/// largest, where the dose is below the target there too); a divergence grows with the square of a small one.
double DoseSearch::by_slope(const Doses::value_type& nearest) const {
  double slope = 2.0;
  if (doses_.size() > 1) {
    const auto& other =
        nearest.first == doses_.begin()->first ? *std::next(doses_.begin()) : *std::next(doses_.rbegin());
    slope = std::log(nearest.second / other.second) / std::log(nearest.first / other.first);
  }
  const auto by = std::pow(target_ / nearest.second, 1.0 / (slope > 0.5 && slope < 4.0 ? slope : 2.0));
  return std::isfinite(by) ? by : target_ > nearest.second ? 2.0 : 0.5;
}

/// Where the line through both logarithms meets the target; the middle where that has not narrowed the bracket.
double DoseSearch::between(const Doses::value_type& below, const Doses::value_type& above) const {
  const auto low = std::log(below.first), high = std::log(above.first);
  double at = 0.5;
  if (below.second > 0 && rounds_ % 4 != 0)
    at = std::log(target_ / below.second) / std::log(above.second / below.second);
  return std::exp(low + std::clamp(std::isfinite(at) ? at : 0.5, 0.002, 0.998) * (high - low));
}

}  // namespace introspect::experiments

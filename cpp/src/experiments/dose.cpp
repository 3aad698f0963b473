#include "introspect/experiments/dose.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <stdexcept>

#include "introspect/core/check.h"

#include "experiments/dose_meter.h"

namespace introspect::experiments {
namespace {

// The grid of a search, in units of DoseMeter::scale: median residual norms.
constexpr double kFirst = 1.0 / 64, kFirstRound = 0.5, kLargest = 32.0, kSmallest = 1e-7;
constexpr int64_t kMostRounds = 60;

const std::map<std::string, double Dose::*>& measures() {
  static const std::map<std::string, double Dose::*> kMeasures{{"kl", &Dose::kl},
                                                               {"kl_later", &Dose::kl_later},
                                                               {"kl_read", &Dose::kl_read},
                                                               {"sd", &Dose::sd},
                                                               {"sd_overall", &Dose::sd_overall}};
  return kMeasures;
}

bool is_length(const std::string& what) {
  return what.rfind("sd", 0) == 0;
}

/// What is needed of the model for this target alone.
DoseOptions options_for(const std::string& what, DoseOptions options) {
  options.leak = false;
  options.sizes = is_length(what);
  options.later = what == "kl_later" || what == "kl_read";
  return options;
}

/// A dose to be reached by one subject.
struct Goal {
  size_t subject = 0;
  double target = 0.0;
  double start =
      0.0;  // the first strength to try; 0: the grid, which finds the smallest that reaches the target
};

/// The search for one subject's strength.
class Search {
 public:
  Search(const Goal& goal, double scale, double tolerance)
      : target_(goal.target), start_(goal.start), scale_(scale), tolerance_(tolerance) {}

  bool is_done() const { return found_ >= 0; }
  const Dose& found() const { return doses_.at(found_); }
  bool is_unreachable() const { return is_unreachable_; }
  int64_t n_measured() const { return static_cast<int64_t>(values_.size()); }

  /// The strengths to measure next.
  std::vector<double> next() const {
    if (values_.empty() && start_ > 0) return {start_};
    if (values_.empty()) {
      std::vector<double> out;
      for (double s = kFirst; s <= kFirstRound; s *= 2) out.push_back(s * scale_);
      return out;
    }
    const auto [below, above] = bracket();
    if (above == values_.end()) {
      const auto& largest = *values_.rbegin();
      return {largest.first * (start_ > 0 ? std::clamp(by_slope(largest), 1.01, 4.0) : 2.0)};
    }
    if (below == values_.end()) return {above->first * std::clamp(by_slope(*above), 1e-3, 0.99)};
    return {between(*below, *above)};
  }

  void take(double strength, double value, Dose dose) {
    values_[strength] = value;
    doses_[strength] = std::move(dose);
    if (std::abs(value / target_ - 1) <= tolerance_) near_.push_back(strength);
  }

  /// After all strengths of `next` have been taken.
  void settle() {
    ++rounds_;
    const auto [below, above] = bracket();
    // The first strength that is near enough, unless the dose has exceeded the target before it.
    for (const auto strength : near_)
      if ((above == values_.end() || strength <= above->first) && (found_ < 0 || strength < found_))
        found_ = strength;
    if (found_ >= 0) return;
    if (above == values_.end())
      is_unreachable_ = values_.rbegin()->first >= kLargest * scale_ * 0.999;
    else if (below == values_.end())
      is_unreachable_ = above->first <= kSmallest * scale_;
    else if (above->first / below->first - 1 < 1e-12)
      found_ = above->first;  // it jumps there
  }

  bool is_monotone() const {
    double most = 0;
    for (const auto& [strength, value] : values_) {
      if (value < most * (1 - 1e-4) - 1e-9) return false;
      most = std::max(most, value);
    }
    return true;
  }

  /// "1e-07 (at strength 2e-05) to 14.2 (at 8)".
  std::string reached() const {
    auto least = values_.end(), most = values_.end();
    for (auto it = values_.begin(); it != values_.end(); ++it) {
      if (!std::isfinite(it->second)) continue;
      if (least == values_.end() || it->second < least->second) least = it;
      if (most == values_.end() || it->second > most->second) most = it;
    }
    if (most == values_.end()) return "no number that is finite";
    return concat(least->second, " (at strength ", least->first, ") to ", most->second, " (at strength ",
                  most->first, ")");
  }

 private:
  using Values = std::map<double, double>;  // strength -> dose

  /// The neighbours between which the dose first exceeds the target; `below` is the end where the least strength does.
  std::pair<Values::const_iterator, Values::const_iterator> bracket() const {
    auto below = values_.end();
    for (auto it = values_.begin(); it != values_.end(); ++it) {
      if (!(it->second < target_)) {
        if (std::isnan(it->second)) continue;
        return {below, it};
      }
      below = it;
    }
    return {values_.end(), values_.end()};
  }

  /// By what factor the strength must change for the dose to reach the target: as at the two least strengths (or the two
  /// largest, where the dose is below the target there too); a divergence grows with the square of a small one.
  double by_slope(const Values::value_type& nearest) const {
    double slope = 2.0;
    if (values_.size() > 1) {
      const auto& other = nearest.first == values_.begin()->first ? *std::next(values_.begin())
                                                                  : *std::next(values_.rbegin());
      slope = std::log(nearest.second / other.second) / std::log(nearest.first / other.first);
    }
    const auto by = std::pow(target_ / nearest.second, 1.0 / (slope > 0.5 && slope < 4.0 ? slope : 2.0));
    return std::isfinite(by) ? by : target_ > nearest.second ? 2.0 : 0.5;
  }

  /// Where the line through both logarithms meets the target; the middle where that has not narrowed the bracket.
  double between(const Values::value_type& below, const Values::value_type& above) const {
    const auto low = std::log(below.first), high = std::log(above.first);
    double at = 0.5;
    if (below.second > 0 && rounds_ % 4 != 0)
      at = std::log(target_ / below.second) / std::log(above.second / below.second);
    return std::exp(low + std::clamp(std::isfinite(at) ? at : 0.5, 0.002, 0.998) * (high - low));
  }

  double target_, start_, scale_, tolerance_;
  Values values_;
  std::map<double, Dose> doses_;
  std::vector<double> near_;
  int64_t rounds_ = 0;
  double found_ = -1;
  bool is_unreachable_ = false;
};

std::string named(const DoseSubject& subject) {
  return concat("'", subject.concept_name, "'",
                subject.null_index < 0 ? "" : concat(" (null ", subject.null_index, ")"), " in blocks ",
                subject.first_layer, " to ", subject.last_layer);
}

/// The strength of every goal, all searches' next steps in one graph. Throws std::invalid_argument for a target out of
/// reach.
std::vector<SolvedDose> solve(DoseMeter& meter, const std::vector<Goal>& goals, const std::string& what,
                              double tolerance) {
  std::vector<SolvedDose> out(goals.size());
  std::map<size_t, Search> searches;
  for (size_t i = 0; i < goals.size(); ++i)
    searches.emplace(i, Search(goals[i], meter.scale(goals[i].subject), tolerance));
  for (int64_t round = 0; !searches.empty(); ++round) {
    check<Error>(round < kMostRounds, "dose: the search for ", what, " did not end after ", kMostRounds,
                 " rounds");
    std::vector<size_t> of_request;
    std::vector<DoseMeter::Request> requests;
    for (const auto& [i, search] : searches)
      for (const double strength : search.next()) {
        of_request.push_back(i);
        requests.emplace_back(goals[i].subject, strength);
      }
    const auto doses = meter.measure(requests);
    for (size_t r = 0; r < requests.size(); ++r)
      searches.at(of_request[r]).take(requests[r].second, doses[r].*measures().at(what), doses[r]);
    for (auto one = searches.begin(); one != searches.end();) {
      auto& [i, search] = *one;
      search.settle();
      check<std::invalid_argument>(!search.is_unreachable(), "dose: no strength gives ",
                                   named(meter.subjects()[goals[i].subject]), " a dose of ", what, "=",
                                   goals[i].target, ": from what was tried it reaches ", search.reached());
      if (!search.is_done()) {
        ++one;
        continue;
      }
      out[i] = {search.found(), goals[i].target, search.is_monotone(), search.n_measured()};
      one = searches.erase(one);
    }
  }
  return out;
}

/// A length is proportional to the strength.
std::vector<SolvedDose> solve_length(const DoseMeter& meter, double target, const std::string& what) {
  std::vector<SolvedDose> out(meter.subjects().size());
  for (size_t subject = 0; subject < meter.subjects().size(); ++subject) {
    Dose at_one;
    meter.measure_sizes(subject, 1.0, at_one);
    const auto per_strength = at_one.*measures().at(what);
    check<std::invalid_argument>(std::isfinite(per_strength) && per_strength > 0, "dose: no strength gives ",
                                 named(meter.subjects()[subject]), " a dose of ", what, "=", target,
                                 ": strength 1 gives ", per_strength);
    out[subject].dose.strength = target / per_strength;
    out[subject].target = target;
  }
  return out;
}

void check_dose_options(const std::string& who, const DoseOptions& options) {
  check<std::invalid_argument>(!options.strengths.empty() && !options.layers.empty(), who,
                               ": at least one strength and one layer range are needed");
  for (const auto strength : options.strengths)
    check<std::invalid_argument>(std::isfinite(strength), who, ": strengths must be finite, got ", strength);
  check<std::invalid_argument>(
      options.part.first >= 0 && options.part.first < options.part.last && options.part.last <= 1, who,
      ": a part must be fractions in order and from 0 to 1, got ", options.part.first, " to ",
      options.part.last);
  check<std::invalid_argument>(options.nulls >= 0, who, ": nulls must be 0 or more, got ", options.nulls);
  check<std::invalid_argument>(options.tolerance > 0 && options.tolerance < 1, who,
                               ": tolerance must be a share above 0 and below 1, got ", options.tolerance);
}

/// Everything that was asked for, at the strengths that were found, of all subjects.
void measure_found(const graph::ModelPtr& model, const DoseContext& context, const NamedVectors& vectors,
                   const DoseOptions& options, std::vector<SolvedDose>& solved) {
  DoseMeter meter("dose", model, context, vectors, options);
  std::vector<DoseMeter::Request> requests;
  for (size_t subject = 0; subject < solved.size(); ++subject)
    requests.emplace_back(subject, solved[subject].dose.strength);
  const auto doses = meter.measure(requests);
  for (size_t subject = 0; subject < solved.size(); ++subject) solved[subject].dose = doses[subject];
}

}  // namespace

DoseTarget DoseTarget::parse(const std::string& text) {
  const auto equals = text.find('=');
  std::string names;
  for (const auto& [name, measure] : measures()) names += concat(names.empty() ? "" : ", ", name);
  check<std::invalid_argument>(equals != std::string::npos && measures().count(text.substr(0, equals)) > 0,
                               "DoseTarget: it must be NAME=NUMBER with a name of ", names, ", got '", text,
                               "'");
  DoseTarget out;
  out.what = text.substr(0, equals);
  const auto value = text.substr(equals + 1);
  const auto* const end = value.data() + value.size();
  const auto parsed = std::from_chars(value.data(), end, out.value);
  check<std::invalid_argument>(
      parsed.ec == std::errc() && parsed.ptr == end && std::isfinite(out.value) && out.value > 0,
      "DoseTarget: ", out.what, " must be a number above 0, got '", value, "'");
  return out;
}

std::string DoseTarget::text() const {
  return concat(what, "=", value);
}

std::vector<Dose> measure_doses(const graph::ModelPtr& model, const DoseContext& context,
                                const NamedVectors& vectors, const DoseOptions& options) {
  check_dose_options("dose", options);
  DoseMeter meter("dose", model, context, vectors, options);
  return meter.measure(meter.requests());
}

std::vector<SolvedDose> solve_doses(const graph::ModelPtr& model, const DoseContext& context,
                                    const NamedVectors& vectors, const DoseTarget& target,
                                    const DoseOptions& options) {
  check_dose_options("dose", options);
  check<std::invalid_argument>(
      std::isfinite(target.value) && target.value > 0 && measures().count(target.what) > 0,
      "dose: a target must be a known dose above 0, got ", target.text());
  std::vector<SolvedDose> solved;
  {
    DoseMeter meter("dose", model, context, vectors, options_for(target.what, options));
    if (is_length(target.what)) {
      solved = solve_length(meter, target.value, target.what);
    } else {
      std::vector<Goal> goals;
      for (size_t subject = 0; subject < meter.subjects().size(); ++subject)
        goals.push_back({subject, target.value});
      solved = solve(meter, goals, target.what, options.tolerance);
    }
  }
  measure_found(model, context, vectors, options, solved);
  return solved;
}

std::vector<EqualDose> equal_doses(const graph::ModelPtr& model, const DoseContext& context,
                                   const NamedVectors& vectors, const DoseOptions& options,
                                   const std::string& what) {
  check_dose_options("equal_dose", options);
  check<std::invalid_argument>(measures().count(what) > 0 && !is_length(what),
                               "equal_dose: the dose must be kl, kl_later or kl_read, got '", what, "'");
  check<std::invalid_argument>(options.nulls > 0 || !options.null_vectors.empty(),
                               "equal_dose: at least one null is needed, got none");
  DoseMeter meter("equal_dose", model, context, vectors, options_for(what, options));
  for (const auto& [subject, strength] : meter.requests())
    check<std::invalid_argument>(strength > 0, "equal_dose: strengths must be above 0, got ", strength);
  const auto& subjects = meter.subjects();
  std::map<std::string, std::string> model_types;
  for (const auto& [name, vector] : vectors) model_types[name] = vector.model_type();

  std::vector<DoseMeter::Request> own;
  for (size_t place = 0; place < options.strengths.size(); ++place)
    for (size_t i = 0; i < subjects.size(); ++i)
      if (subjects[i].null_index < 0) own.emplace_back(i, meter.strength(i, place));
  const auto doses = meter.measure(own);
  std::vector<Goal> goals;
  std::vector<const Dose*> of_vector;
  for (size_t place = 0; place < options.strengths.size(); ++place)
    for (size_t i = 0; i < subjects.size(); ++i) {
      if (subjects[i].null_index < 0) continue;
      const auto strength = meter.strength(i, place);
      const auto vector = std::find(own.begin(), own.end(), DoseMeter::Request(meter.vector_of(i), strength));
      of_vector.push_back(&doses[static_cast<size_t>(vector - own.begin())]);
      const auto dose = of_vector.back()->*measures().at(what);
      check<std::invalid_argument>(std::isfinite(dose) && dose > 0, "equal_dose: ", named(subjects[i]),
                                   " has nothing to equal: at strength ", strength, " the vector's ", what,
                                   " is ", dose);
      goals.push_back({i, dose, strength});
    }
  auto solved = solve(meter, goals, what, options.tolerance);
  std::vector<EqualDose> out;
  for (size_t i = 0; i < goals.size(); ++i) {
    steering::ControlVector added(
        model_types.at(solved[i].dose.concept_name),
        meter.added(meter.scenes().front(), subjects[goals[i].subject].injections.front(),
                    solved[i].dose.strength));
    out.push_back({std::move(solved[i]), *of_vector[i], std::move(added),
                   meter.token_layers() / static_cast<int64_t>(goals.size())});
  }
  return out;
}

}  // namespace introspect::experiments

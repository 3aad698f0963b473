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

/// The search for one subject's strength.
class Search {
 public:
  Search(double target, double scale, double tolerance)
      : target_(target), scale_(scale), tolerance_(tolerance) {}

  bool is_done() const { return found_ >= 0; }
  double found() const { return found_; }
  bool is_unreachable() const { return is_unreachable_; }
  int64_t n_measured() const { return static_cast<int64_t>(values_.size()); }

  /// The strengths to measure next.
  std::vector<double> next() const {
    if (values_.empty()) {
      std::vector<double> out;
      for (double s = kFirst; s <= kFirstRound; s *= 2) out.push_back(s * scale_);
      return out;
    }
    const auto [below, above] = bracket();
    if (above == values_.end()) return {2 * values_.rbegin()->first};
    if (below == values_.end()) return {smaller(above->first, above->second)};
    return {between(*below, *above)};
  }

  void take(double strength, double value) {
    values_[strength] = value;
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

  /// A divergence grows with the square of a small strength.
  double smaller(double strength, double value) const {
    const auto by = std::sqrt(target_ / value);
    return strength * std::clamp(std::isfinite(by) ? 0.9 * by : 0.5, 1e-3, 0.5);
  }

  /// Where the line through both logarithms meets the target; the middle where that has not narrowed the bracket.
  double between(const Values::value_type& below, const Values::value_type& above) const {
    const auto low = std::log(below.first), high = std::log(above.first);
    double at = 0.5;
    if (below.second > 0 && rounds_ % 4 != 0)
      at = std::log(target_ / below.second) / std::log(above.second / below.second);
    return std::exp(low + std::clamp(std::isfinite(at) ? at : 0.5, 0.002, 0.998) * (high - low));
  }

  double target_, scale_, tolerance_;
  Values values_;
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

/// The strength of every subject that has a target. Throws std::invalid_argument for a target out of reach.
std::map<size_t, SolvedDose> solve(DoseMeter& meter, const std::map<size_t, double>& targets,
                                   const std::string& what, double tolerance) {
  std::map<size_t, SolvedDose> out;
  std::map<size_t, Search> searches;
  for (const auto& [subject, target] : targets)
    searches.emplace(subject, Search(target, meter.scale(subject), tolerance));
  for (int64_t round = 0; !searches.empty(); ++round) {
    check<Error>(round < kMostRounds, "dose: the search for ", what, " did not end after ", kMostRounds,
                 " rounds");
    std::vector<DoseMeter::Request> requests;
    for (const auto& [subject, search] : searches)
      for (const double strength : search.next()) requests.emplace_back(subject, strength);
    const auto doses = meter.measure(requests);
    for (size_t i = 0; i < requests.size(); ++i)
      searches.at(requests[i].first).take(requests[i].second, doses[i].*measures().at(what));
    for (auto one = searches.begin(); one != searches.end();) {
      auto& [subject, search] = *one;
      search.settle();
      check<std::invalid_argument>(!search.is_unreachable(), "dose: no strength gives ",
                                   named(meter.subjects()[subject]), " a dose of ", what, "=",
                                   targets.at(subject), ": from what was tried it reaches ",
                                   search.reached());
      if (!search.is_done()) {
        ++one;
        continue;
      }
      auto& solved = out[subject];
      solved.dose.strength = search.found();
      solved.target = targets.at(subject);
      solved.is_monotone = search.is_monotone();
      solved.n_measured = search.n_measured();
      one = searches.erase(one);
    }
  }
  return out;
}

/// A length is proportional to the strength.
std::map<size_t, SolvedDose> solve_length(const DoseMeter& meter, double target, const std::string& what) {
  std::map<size_t, SolvedDose> out;
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

/// Everything that was asked for, at the strengths that were found.
void measure_found(const graph::ModelPtr& model, const DoseContext& context, const NamedVectors& vectors,
                   const DoseOptions& options, std::map<size_t, SolvedDose>& solved) {
  DoseMeter meter("dose", model, context, vectors, options);
  std::vector<DoseMeter::Request> requests;
  for (const auto& [subject, one] : solved) requests.emplace_back(subject, one.dose.strength);
  const auto doses = meter.measure(requests);
  size_t i = 0;
  for (auto& [subject, one] : solved) one.dose = doses[i++];
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
  std::map<size_t, SolvedDose> solved;
  {
    DoseMeter meter("dose", model, context, vectors, options_for(target.what, options));
    if (is_length(target.what)) {
      solved = solve_length(meter, target.value, target.what);
    } else {
      std::map<size_t, double> targets;
      for (size_t subject = 0; subject < meter.subjects().size(); ++subject) targets[subject] = target.value;
      solved = solve(meter, targets, target.what, options.tolerance);
    }
  }
  measure_found(model, context, vectors, options, solved);
  std::vector<SolvedDose> out;
  for (auto& [subject, one] : solved) out.push_back(std::move(one));
  return out;
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

  std::vector<EqualDose> out;
  for (size_t place = 0; place < options.strengths.size(); ++place) {
    std::vector<DoseMeter::Request> requests;
    for (size_t i = 0; i < subjects.size(); ++i)
      if (subjects[i].null_index < 0) requests.emplace_back(i, meter.strength(i, place));
    const auto doses = meter.measure(requests);
    std::map<size_t, Dose> of_vector;
    for (size_t i = 0; i < requests.size(); ++i) of_vector[requests[i].first] = doses[i];
    std::map<size_t, double> targets;
    for (size_t i = 0; i < subjects.size(); ++i) {
      if (subjects[i].null_index < 0) continue;
      const auto dose = of_vector.at(meter.vector_of(i)).*measures().at(what);
      check<std::invalid_argument>(std::isfinite(dose) && dose > 0, "equal_dose: ", named(subjects[i]),
                                   " has nothing to equal: at strength ", meter.strength(i, place),
                                   " the vector's ", what, " is ", dose);
      targets[i] = dose;
    }
    auto solved = solve(meter, targets, what, options.tolerance);
    requests.clear();
    for (const auto& [subject, one] : solved) requests.emplace_back(subject, one.dose.strength);
    const auto reached = meter.measure(requests);
    size_t i = 0;
    for (auto& [subject, one] : solved) {
      one.dose = reached[i++];
      const auto& vector = of_vector.at(meter.vector_of(subject));
      steering::ControlVector added(
          model_types.at(one.dose.concept_name),
          meter.added(meter.scenes().front(), subjects[subject].injections.front(), one.dose.strength));
      out.push_back({std::move(one), vector, std::move(added)});
    }
  }
  return out;
}

}  // namespace introspect::experiments

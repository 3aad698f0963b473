#include "introspect/experiments/dose.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <stdexcept>

#include "introspect/core/check.h"
#include "introspect/experiments/dose_search.h"

#include "experiments/dose_meter.h"

namespace introspect::experiments {
namespace {

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
  struct Open {
    DoseSearch search;
    std::map<double, Dose> doses;
  };
  std::map<size_t, Open> searches;
  for (size_t i = 0; i < goals.size(); ++i) {
    const auto& [subject, target, start] = goals[i];
    searches.emplace(i, Open{DoseSearch(target, start, meter.scale(subject), tolerance), {}});
  }
  for (int64_t round = 0; !searches.empty(); ++round) {
    check<Error>(round < kMostRounds, "dose: the search for ", what, " did not end after ", kMostRounds,
                 " rounds");
    std::vector<size_t> of_request;
    std::vector<DoseMeter::Request> requests;
    for (const auto& [i, open] : searches)
      for (const double strength : open.search.next()) {
        of_request.push_back(i);
        requests.emplace_back(goals[i].subject, strength);
      }
    const auto measured = meter.measure(requests);
    for (size_t r = 0; r < requests.size(); ++r)
      searches.at(of_request[r]).doses[requests[r].second] = measured[r];
    for (auto one = searches.begin(); one != searches.end();) {
      auto& [i, open] = *one;
      auto& search = open.search;
      std::map<double, double> taken;
      for (const double strength : search.next())
        taken[strength] = open.doses.at(strength).*measures().at(what);
      search.take(taken);
      check<std::invalid_argument>(!search.is_unreachable(), "dose: no strength gives ",
                                   named(meter.subjects()[goals[i].subject]), " a dose of ", what, "=",
                                   goals[i].target, ": from what was tried it reaches ", search.reached());
      if (!search.is_done()) {
        ++one;
        continue;
      }
      out[i] = {open.doses.at(search.found()), goals[i].target, search.is_monotone(), search.n_measured()};
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
    out.push_back({std::move(solved[i]), *of_vector[i], std::move(added)});
  }
  return out;
}

}  // namespace introspect::experiments

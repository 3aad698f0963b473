#include "experiments/reading_check.h"

#include <cmath>
#include <optional>
#include <vector>

#include "core/json.h"
#include "introspect/core/check.h"

namespace introspect::experiments {
namespace {

constexpr auto kNorms = "the residual norms of a scene";
constexpr double kRounding = 1e-3;  // of a probability made from float32 logits

/// NaN stands for what was not finite when it was read.
bool is_probability(double p) {
  return std::isnan(p) || (p >= 0 && p <= 1 + kRounding);
}

std::optional<std::string> problem_of(const std::vector<TokenReading>& tokens) {
  for (const auto& token : tokens) {
    if (token.rank < 1 && std::isfinite(token.log_prob))
      return concat("rank of '", token.token, "' must be 1 or more, got ", token.rank);
    if (token.id < 0) return concat("id of '", token.token, "' must be 0 or more, got ", token.id);
    if (token.log_prob > kRounding)
      return concat("log_prob of '", token.token, "' must be 0 or less, got ", token.log_prob);
  }
  return std::nullopt;
}

std::map<int64_t, double> norms_of(const std::string& value) {
  const auto json = parse_json<IoError>(value, kNorms);
  const JsonField<IoError> list(json, concat(kNorms, ": "));
  std::map<int64_t, double> out;
  for (size_t i = 0; i < list.list(); ++i) {
    const auto layer = list.at(i).at(0).integer();
    const auto norm = list.at(i).at(1).number();
    list.require(layer >= 0 && norm >= 0, "must be 0 or more and of blocks, got ", norm, " of block ", layer);
    out[layer] = norm;
  }
  list.require(!out.empty(), "must be of some block, got none");
  return out;
}

template <typename Work>
auto named(const Store& store, const std::string& key, const Work& work) {
  try {
    return work();
  } catch (const IoError& error) {
    throw IoError(concat("Store: ", store.path().string(), ": cell ", key.substr(0, 12), ": ", error.what(),
                         ". Sound cells can be taken into a new store: introspect store merge NEW ",
                         store.path().string()));
  }
}

}  // namespace

std::string problem_of(const Reading& reading) {
  for (const auto& [name, p] : {std::pair("p_yes", reading.p_yes), std::pair("p_no", reading.p_no)})
    if (!is_probability(p)) return concat(name, " must be from 0 to 1, got ", p);
  for (const auto* tokens : {&reading.tokens, &reading.answers})
    if (const auto problem = problem_of(*tokens)) return *problem;
  if (reading.lens)
    for (const auto* layers : {&reading.lens->p_yes, &reading.lens->p_no})
      for (const double p : *layers)
        if (!std::isnan(p) && (p < 0 || p > 1 + kRounding))
          return concat("the lens' probabilities must be from 0 to 1, got ", p);
  if (reading.entropy && *reading.entropy < -kRounding)
    return concat("entropy must be 0 or more, got ", *reading.entropy);
  return "";
}

std::string problem_of(const Cell& cell) {
  try {
    if (cell.kind != "norms") return problem_of(Reading::from_json(cell.value));
    norms_of(cell.value);
    return "";
  } catch (const IoError& error) {
    return error.what();
  }
}

Reading stored_reading(const Store& store, const std::string& key, const std::string& value, const Plan& plan,
                       const Ask& ask) {
  return named(store, key, [&] {
    auto reading = Reading::from_json(value);
    const auto problem = problem_of(reading);
    check<IoError>(problem.empty(), problem);
    const auto check_number = [](size_t number, size_t expected, const char* what) {
      check<IoError>(number == expected, "a reading must hold ", expected, " ", what, ", got ", number);
    };
    check_number(reading.tokens.size(), ask.report_ids.size(), "tokens");
    check_number(reading.answers.size(), ask.answer_ids.size(), "answers");
    check_number(reading.text ? 1 : 0, ask.samples ? 1 : 0, "texts");
    check_number(reading.lens ? 1 : 0, plan.readouts.lens ? 1 : 0, "lenses");
    check_number(reading.continuations.size(), plan.continuations.size(), "continuations");
    return reading;
  });
}

std::map<int64_t, double> stored_norms(const Store& store, const std::string& key, const std::string& value,
                                       int64_t n_layers) {
  return named(store, key, [&] {
    auto norms = norms_of(value);
    for (int64_t layer = 0; layer < n_layers; ++layer)
      check<IoError>(norms.count(layer) > 0, kNorms, ": layer ", layer, " is missing");
    return norms;
  });
}

}  // namespace introspect::experiments

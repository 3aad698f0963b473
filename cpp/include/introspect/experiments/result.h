#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "introspect/experiments/defaults.h"
#include "introspect/experiments/protocol.h"
#include "introspect/experiments/setting.h"
#include "introspect/experiments/value.h"
#include "introspect/export.h"

namespace introspect::experiments {

/// What was read at one position, in float32 whatever the model's dtype.
struct Reading {
  double log_odds = 0.0;  ///< logit(yes) - logit(no), in nats
  double p_yes = 0.0;
  double p_no = 0.0;
  /// What readouts have read, by their fields: see experiments/readouts.h, and src/experiments/readouts for what the
  /// library's hold ("lens", "attention", "tokens", "text", ...).
  std::map<std::string, Value> values{};

  /// Whether log-odds and probabilities are finite. A reading where they are not has failed.
  INTROSPECT_EXPORT bool is_finite() const;
  /// How much of the next token's probability the answers have: p_yes + p_no, or that of a localisation's answers.
  INTROSPECT_EXPORT double mass() const;

  /// Fields of readouts that are registered stand in their order, and others after them.
  INTROSPECT_EXPORT std::string to_json() const;
  /// Throws IoError for text that is not a reading, and for fields of registered readouts that cannot be theirs.
  INTROSPECT_EXPORT static Reading from_json(const std::string& json);
};

/// What is wrong with the JSON of a reading that comes from a file (no reading, a probability of 7), or nothing.
INTROSPECT_EXPORT std::string problem_of_reading(const std::string& json);

/// Whether an injection takes the probability away from the answers: see kKeptMass and kLeastMass.
INTROSPECT_EXPORT bool leaves_format(const Reading& base, const Reading& injected);

/// One question asked with and without one injection.
struct Record : Setting {
  Reading base;
  Reading injected;
  bool leaves_format = false;  ///< of protocols that read yes or no: the function of this name
};

struct Result {
  struct ModelInfo {
    std::string name, hash, architecture;
    int64_t n_layers = 0;
    std::string dtype, device;
  } model;
  struct ProtocolInfo {
    std::string name, hash, read, yes_token, no_token, inject;
    std::vector<std::string> answers;
  } protocol;
  struct Settings {
    uint64_t seed = 0;
    int64_t nulls = 0;
    std::string strength_unit;
    std::string residual_norm;  ///< of StrengthUnit::residual: "median", over the injected tokens
    std::string controls;       ///< the conversation of the control questions, as Asked::asked_in
    int64_t threads = 0;
    std::string introspect_version, torch_version;
    Value::Fields of_readouts;  ///< what tables of readouts need to know: the "continuations"' texts
    /// Control questions are those whose base log-odds lie below this.
    std::optional<double> control_filter;
    int64_t controls_asked = 0, controls_kept = 0;
  } settings;
  std::vector<std::string> warnings;  ///< what a reader of the numbers should know
  std::vector<Record> rows;

  /// The result as a JSON object of schema 1: "model", "protocol", "settings", "warnings", "rows", fields named as
  /// here (a row's `concept_name` as "concept"); fields that were not asked for are left out. NaN and infinity are null.
  INTROSPECT_EXPORT std::string to_json() const;
};

}  // namespace introspect::experiments

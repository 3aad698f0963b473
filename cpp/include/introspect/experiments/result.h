#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "introspect/experiments/defaults.h"
#include "introspect/experiments/protocol.h"
#include "introspect/export.h"

namespace introspect::experiments {

/// One token at the read position.
struct TokenReading {
  std::string token;  ///< the token's text
  int64_t id = 0;
  double log_prob = 0.0;  ///< natural logarithm, over the whole vocabulary
  int64_t rank = 0;       ///< 1 is the most probable
};

/// A token whose log-probability an injection changed.
struct TokenChange {
  std::string token;
  int64_t id = 0;
  double change = 0.0;  ///< injected - base, in nats
};

/// The same reading of the residual after every block, through the final norm and the unembedding (nostalgebraist 2020).
struct Lens {
  std::vector<double> log_odds;                ///< [L]
  std::vector<double> p_yes, p_no;             ///< [L], summed over the spellings
  std::vector<std::vector<double>> log_probs;  ///< of each of Reading::tokens: [L]
};

/// What was read at one position, in float32 whatever the model's dtype.
struct Reading {
  double log_odds = 0.0;  ///< logit(yes) - logit(no), in nats
  double p_yes = 0.0;
  double p_no = 0.0;
  std::vector<TokenReading> tokens;   ///< content protocols: unspaced and spaced token of every concept
  std::optional<std::string> text;    ///< sample protocols: what the model went on with
  std::vector<TokenReading> answers;  ///< localisation: the token of each passage

  // Where they were asked for:
  std::optional<double> set_log_odds;  ///< of all spellings: log of the sums of exp(logit), yes - no
  std::optional<Lens> lens;
  std::vector<std::vector<double>> attention;  ///< to the injected spans, summed over their tokens: [L][H]
  std::optional<double> entropy;               ///< of the next token, in nats
  std::optional<double> kl;                    ///< KL(injected || base), in nats; of injected readings
  std::vector<TokenChange> raised, lowered;    ///< most changed first; of injected readings
  std::map<std::string, std::map<int64_t, double>> projections;  ///< on unit directions, by name and block
  std::vector<double> continuations;  ///< log-probability of each text that was given, in nats

  /// Whether log-odds and probabilities are finite. A reading where they are not has failed.
  INTROSPECT_EXPORT bool is_finite() const;
  /// How much of the next token's probability the answers have: p_yes + p_no, or that of a localisation's answers.
  INTROSPECT_EXPORT double mass() const;

  INTROSPECT_EXPORT std::string to_json() const;
  /// Throws IoError for text that is not a reading.
  INTROSPECT_EXPORT static Reading from_json(const std::string& json);
};

/// Whether an injection takes the probability away from the answers: see kKeptMass and kLeastMass.
INTROSPECT_EXPORT bool leaves_format(const Reading& base, const Reading& injected);

/// One question asked with and without one injection.
struct Row {
  std::string concept_name;
  double strength = 0.0;
  int64_t first_layer = 0;
  int64_t last_layer = 0;     ///< inclusive
  std::string question;       ///< the protocol's own: its last user message
  std::string question_kind;  ///< "introspection" or "control"
  std::string kind;           ///< question_kind, or "random" for a random rotation of the vector
  int64_t null_index = -1;    ///< 0, 1, ... for a random one
  Reading base;
  Reading injected;
  /// Paraphrase::label or kOwnQuestion, "control" for control questions; empty: the protocol has no paraphrases.
  std::string paraphrase{};
  int64_t place = -1;                        ///< which passage was injected alone; -1: all spans
  double part_first = 0.0, part_last = 1.0;  ///< which part of the injected tokens, as fractions
  /// The conversation that the question was asked in: kOwnConversation, or the name of another one.
  std::string asked_in = kOwnConversation;
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
    std::string controls;       ///< the conversation of the control questions, as Row::asked_in
    int64_t threads = 0;
    std::string introspect_version, torch_version;
    std::vector<std::string> continuations;
    /// Control questions are those whose base log-odds lie below this.
    std::optional<double> control_filter;
    int64_t controls_asked = 0, controls_kept = 0;
  } settings;
  std::vector<std::string> warnings;  ///< what a reader of the numbers should know
  std::vector<Row> rows;

  /// The result as a JSON object of schema 1: "model", "protocol", "settings", "warnings", "rows", fields named as
  /// here (a row's `concept_name` as "concept"); fields that were not asked for are left out. NaN and infinity are null.
  INTROSPECT_EXPORT std::string to_json() const;
};

}  // namespace introspect::experiments

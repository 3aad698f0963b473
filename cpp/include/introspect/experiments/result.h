#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "introspect/export.h"

namespace introspect::experiments {

/// One token at the read position.
struct TokenReading {
  std::string token;  ///< the token's text
  int64_t id = 0;
  double log_prob = 0.0;  ///< natural logarithm, over the whole vocabulary
  int64_t rank = 0;       ///< 1 is the most probable
};

/// What was read at one position, in float32 whatever the model's dtype.
struct Reading {
  double log_odds = 0.0;  ///< logit(yes) - logit(no), in nats
  double p_yes = 0.0;
  double p_no = 0.0;
  std::vector<TokenReading> tokens;  ///< content protocols: unspaced and spaced token of every concept
  std::optional<std::string> text;   ///< sample protocols: what the model went on with

  INTROSPECT_EXPORT std::string to_json() const;
  /// Throws IoError for text that is not a reading.
  INTROSPECT_EXPORT static Reading from_json(const std::string& json);
};

/// One question asked with and without one injection.
struct Row {
  std::string concept_name;
  double strength = 0.0;
  int64_t first_layer = 0;
  int64_t last_layer = 0;     ///< inclusive
  std::string question;       ///< the protocol's own: its last user message
  std::string question_kind;  ///< "introspection" or "control"
  std::string kind;           ///< question_kind, or "null" for a random rotation of the vector
  int64_t null_index = -1;    ///< 0, 1, ... for a null
  Reading base;
  Reading injected;
};

struct Result {
  struct ModelInfo {
    std::string name, hash, architecture;
    int64_t n_layers = 0;
    std::string dtype, device;
  } model;
  struct ProtocolInfo {
    std::string name, hash, read, yes_token, no_token;
  } protocol;
  struct Settings {
    uint64_t seed = 0;
    int64_t nulls = 0;
    std::string strength_unit;
    int64_t threads = 0;
    std::string introspect_version, torch_version;
  } settings;
  std::vector<std::string> warnings;  ///< what a reader of the numbers should know
  std::vector<Row> rows;

  /// The result as a JSON object of schema 1: "model", "protocol", "settings", "warnings", "rows", fields named as
  /// here (a row's `concept_name` as "concept"); readings without tokens or text have no such field. NaN and infinity are null.
  INTROSPECT_EXPORT std::string to_json() const;
};

}  // namespace introspect::experiments

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/experiments/run.h"
#include "introspect/experiments/value.h"
#include "introspect/export.h"
#include "introspect/graph/graph.h"
#include "introspect/models/model.h"

namespace introspect::experiments {

/// One thing that a readout needs of the graph for a reading.
struct Need {
  /// What is read of the question's segment: an activation at its last token unless it says otherwise, or that token's
  /// attention. Of attention the keys are always the injected tokens, over which it is summed. No caches.
  graph::Read read;
  bool is_unsteered = false;  ///< of the run without an injection, in the same place
  /// Not of the question's tokens: of those that the injection reaches, and of the unsteered run of all from the first
  /// injected token to the last (ReadoutInputs::injected says which of them are the injection's). No attention.
  bool at_injected = false;
  std::vector<int64_t> after = {};  ///< tokens that are put after the question; then it is read of these

  /// The residual stream after every block at the read position: [1, L, D].
  static Need residuals() { return {}; }
  /// After the last block alone: [1, 1, D].
  static Need last_residual(const models::Config& cfg) {
    Need out;
    out.read.layers = {cfg.n_layers - 1};
    return out;
  }
  /// After the last block, at the injected tokens: [T, 1, D].
  static Need injected_residuals(const models::Config& cfg) {
    auto out = last_residual(cfg);
    out.at_injected = true;
    return out;
  }
  /// Attention from the read position to the injected tokens, summed over them: [L, H].
  static Need attention_to_spans() {
    Need out;
    out.read.what = graph::Read::What::attention;
    return out;
  }
};

/// What a readout is made ready for: one protocol of a run.
struct ReadoutRequest {
  const models::Model& model;
  const Protocol& protocol;
  const ExperimentOptions& options;
  const std::vector<std::string>& concepts;  ///< in the order of the run
  /// The answers' tokens first, then their spellings that are one token.
  const std::vector<int64_t>& yes_ids;
  const std::vector<int64_t>& no_ids;
  const Value* parameter;  ///< nullptr: nobody has asked for it by name
};

/// What is there of one reading. Tensors are on the CPU, in float32 (float64 of a float64 model).
struct ReadoutInputs {
  const models::Model& model;
  /// Of PreparedReadout::needs; what is of the unsteered run is undefined in that run itself.
  std::vector<torch::Tensor> needed;
  torch::Tensor logits_V;       ///< at the read position; undefined for a readout that reads the text
  double log_total = 0.0;       ///< the logarithm of the sum of their exponentials
  bool is_own_question = true;  ///< false: a control question
  /// Of the unsteered run in the same place; undefined in that run itself, and unless the readout compares.
  torch::Tensor unsteered_logits_V;
  std::string text;  ///< that was sampled, for a readout that reads it
  /// The tokens that the injection reaches, counted from the first injected one; without an injection all injected ones.
  std::vector<int64_t> injected = {};
};

/// A field of a reading that a readout fills.
struct ReadoutField {
  std::string name;
  int64_t size = -1;  ///< how many elements it must have; -1: any number
};

/// A readout made ready.
struct PreparedReadout {
  std::vector<Need> needs;
  bool compares = false;           ///< needs ReadoutInputs::unsteered_logits_V
  bool own_question_only = false;  ///< it is not read of control questions
  bool reads_text = false;         ///< needs the text that follows, drawn as the protocol's `sampling` says
  int64_t n_logits = 0;            ///< positions whose logits it computes, which a plan counts
  /// What a reading in a store must hold to be found there.
  std::vector<ReadoutField> fields;
  /// What the numbers hang on besides the run itself and the readout's name, version and parameter, as part of a reading's
  /// key in stores.
  Value::Fields key;
  Value::Fields settings;             ///< for Result::Settings: what its tables need to know
  std::vector<std::string> warnings;  ///< for Result::warnings
  /// The fields of one reading and their values. Called from one thread at a time.
  std::function<Value::Fields(const ReadoutInputs&)> read;
};

/// Something to read of an experiment besides the log-odds, known everywhere by its name.
///
/// One source file in src/experiments/readouts is one readout:
///
///     const bool registered = register_library_readout({.name = "resid_norm", .prepare = ..., });
///
/// A program that uses the library calls register_readout. From then on protocols ("readouts": {"resid_norm": true}),
/// ExperimentOptions::readouts, results, stores and tables know it.
struct Readout {
  std::string name;
  /// What is wrong with a parameter ("must be true or false, got 7"), or nothing. Not given: true or false.
  std::function<std::string(const Value&)> check_parameter = {};
  /// Nothing where this run does not ask for it.
  std::function<std::optional<PreparedReadout>(const ReadoutRequest&)> prepare;
  /// The fields that it fills, in the order of a reading's JSON.
  std::vector<std::string> fields = {};
  /// What is wrong with one of its fields' values that comes from a file, or nothing.
  std::function<std::string(const std::string& field, const Value&)> check = {};
  int64_t version = 1;   ///< rises when its numbers change: readings of before are then not found in stores
  bool by_name = true;   ///< false: it follows from the protocol's other fields or the run's options
  int64_t order = 1000;  ///< of its fields in a reading, and of readouts of one order by name
};

/// Makes a readout known; one of that name that a program has registered before is replaced. Protocols that name it must
/// be read after it.
///
/// Throws ConfigError for a name or field that the library has, or that is empty, and std::invalid_argument without
/// `prepare`.
INTROSPECT_EXPORT void register_readout(Readout readout);

/// In their order.
INTROSPECT_EXPORT std::vector<std::shared_ptr<const Readout>> readouts();

/// Throws ConfigError that lists the nearest names and all of them.
INTROSPECT_EXPORT std::shared_ptr<const Readout> find_readout(const std::string& name);

/// A float tensor of any shape but a scalar's as nested lists of numbers.
INTROSPECT_EXPORT Value numbers(const torch::Tensor& values);

}  // namespace introspect::experiments

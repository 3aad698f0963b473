#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "introspect/core/progress.h"
#include "introspect/experiments/defaults.h"
#include "introspect/experiments/protocol.h"
#include "introspect/experiments/result.h"
#include "introspect/experiments/store.h"
#include "introspect/export.h"
#include "introspect/graph/graph.h"
#include "introspect/steering/control_vector.h"

namespace introspect::experiments {

/// The blocks a vector is added to, both ends included.
struct LayerRange {
  double first = 0, last = 0;
  bool is_fraction = false;

  static LayerRange blocks(int64_t first, int64_t last) {
    return {static_cast<double>(first), static_cast<double>(last), false};
  }
  /// Fractions of the depth: a fraction f of L layers is block round(f L), at most L - 1. The article's blocks 21 to
  /// 42 of 64 are 0.33 to 0.66, which is 8 to 16 of 24.
  static LayerRange fractions(double first, double last) { return {first, last, true}; }

  /// Throws std::out_of_range for blocks the model does not have, fractions outside [0, 1] and ends in reverse.
  INTROSPECT_EXPORT std::pair<int64_t, int64_t> resolve(int64_t n_layers) const;
};

enum class StrengthUnit {
  absolute,  ///< what is added is strength * direction
  residual,  ///< what is added to block l has strength times the median norm of the residual stream there
};

/// Throws std::invalid_argument that lists the names.
INTROSPECT_EXPORT StrengthUnit parse_strength_unit(const std::string& name);

INTROSPECT_EXPORT std::string to_string(StrengthUnit unit);

/// Named control vectors; the names are the result's concepts.
using NamedVectors = std::vector<std::pair<std::string, steering::ControlVector>>;

/// A part of the injected tokens, as fractions of their number.
struct Part {
  double first = 0.0, last = 1.0;
  bool operator==(const Part&) const = default;
};

/// What a run takes, known before it starts.
struct RunPlan {
  int64_t readings = 0;  ///< of all results
  int64_t found = 0;     ///< of those, in the store
  int64_t token_layers_asked =
      0;  ///< tokens times layers of the missing ones, each conversation run by itself
  int64_t token_layers_to_run = 0;  ///< that are run instead
  double seconds = 0;               ///< by a short timed pass of the model, on the machine as it is now
  int64_t peak_bytes = 0;  ///< estimate, without the model: the largest pass, plans, injections and results
  int64_t passes = 0;      ///< over the model's blocks, each of which is read again where they stay in files
  int64_t bytes_read = 0;  ///< of the files, over all passes; 0 where the model is in memory
};

/// The strengths of one vector over one range, in blocks.
struct OwnStrengths {
  std::string concept_name;
  int64_t first_layer = 0, last_layer = 0;
  std::vector<double> strengths;
};

struct ExperimentOptions {
  std::optional<std::vector<double>> strengths;  ///< default: kDefaultStrength, in StrengthUnit::residual
  /// Default: absolute for strengths that are given, residual for the default one.
  std::optional<StrengthUnit> strength_unit;
  /// Instead of `strengths`, as many of them: those that give a dose (experiments/dose.h).
  std::vector<OwnStrengths> own_strengths;
  std::vector<LayerRange> layers{LayerRange::fractions(kDefaultFirst, kDefaultLast)};
  std::vector<Part> parts{{}};  ///< which tokens of the injected spans; each part is run by itself
  /// Control questions. Default: the protocol's; empty: none.
  std::optional<std::vector<std::string>> questions;
  /// More of them, in groups, which rows name. Default: the protocol's; empty: none.
  std::optional<std::vector<QuestionGroup>> groups;
  /// The conversation that they are asked in: kOwnConversation, or the name of the protocol's other one (the article's
  /// protocols have "with_info"). Default: what the protocol says, or else kOwnConversation.
  std::optional<std::string> controls;
  /// Keeps the control questions whose base log-odds lie below this.
  std::optional<double> control_filter;
  int64_t nulls = kDefaultNulls;  ///< random rotations of every vector, run in the same way
  /// More nulls of a concept, numbered after the rotations: vectors trained on shuffled pairs, say.
  std::map<std::string, std::vector<steering::ControlVector>> null_vectors;
  /// Factors on the strength of a concept's nulls, one for each in the order of their numbers (nulls of equal dose, say,
  /// which are weaker than the vector). Rows have the vector's strength. Default: 1.
  std::map<std::string, std::vector<double>> null_factors;
  /// Of protocols that inject by tokens, patch, dropout, scale or swap: the words. Default: the vectors' names.
  std::vector<std::string> concepts;
  /// Of protocols in which another model prefills, by name.
  std::map<std::string, graph::ModelPtr> models;
  uint64_t seed = 0;  ///< of the rotations and of sampled text

  Readouts readouts;        ///< besides the protocol's
  NamedVectors directions;  ///< what residuals at the read position are projected on

  std::shared_ptr<Store> store;
  int64_t memory_budget = int64_t{512} << 20;  ///< bytes of one pass of the graph, weights aside
  /// How long one pass is to last: what it has read is finished and goes to the store at its end. Passes that last half as
  /// long again are made shorter, so that readings are kept every ten seconds on a machine that gets slower, too.
  double pass_seconds = 6;
  Progress progress;  ///< counts readings; also called between layers, so that it can stop the run
  Progress
      work;  ///< counts tokens times layers of everything that is to run; the total is an estimate at first
  /// Called once with what is to come, before long work. An exception from it ends the run.
  std::function<void(const RunPlan&)> before;
};

/// Runs a protocol with every vector x strength x layer range, and the same with rotations of the vectors.
///
/// Each conversation is cut where the chat template ends its messages. What stands before the injected messages is
/// followed by them once unsteered and once for each injection, with the vector added to the output of every block of
/// the range at each of their tokens (what the template writes around them included: its default system message belongs
/// to a first message). Then the steering is off, unless the protocol keeps it on, and each question goes on from that
/// cache. The steering is always off in control questions. Every reading is from float32 logits over the whole
/// vocabulary.
///
/// All readings are made in one graph::Graph: what conversations and injections have in common runs once. A run in
/// many parts is no less exact than one; only residual norms that are needed and not known cost a graph of their own.
///
/// Strength 0 is the unsteered run itself. With StrengthUnit::residual directions count as unit vectors, and the norm
/// is the median over the injected tokens of the unsteered run at that block (steering::median_norm), without the
/// conversation's first token where there are others. A layer of the range without a direction is left
/// alone. Rotations are independent of one another and depend on the seed, the concept's name and their number.
///
/// Protocols that add nothing have one injection for each concept (Inject::tokens, patch, dropout, scale, swap) or one
/// (model): with strength and layers as far as these mean something there (patch and swap: strength 1 replaces the
/// outputs of the range's blocks, less goes part of the way; scale: the outputs are multiplied by 1 + strength; dropout:
/// the run's strengths have no part in it, and rows have the rate as strength), and without nulls. What they do is the
/// same for every concept, but for the words of tokens, patch and swap and for the draws of dropout.
///
/// Noise and dropout are drawn for every injected token and block by themselves, from the seed, the concept's name, the
/// token's number among the injected ones and the block: they do not depend on the order, batches, ranges or questions
/// of a run. Noise has at each token the length of what a vector would add to that block, and no nulls.
///
/// A control question stands in the place of the protocol's own question: same turns, spans and prefix. In another
/// conversation (`controls`) what is subtracted from a shift is the shift in another context; rows say where they were
/// asked.
///
/// A reading that is not finite in the unsteered run is an Error that names the first such block, before it is kept. One
/// that only an injection makes so is kept as failed: NaN, counted in a warning, averaged nowhere.
///
/// Readings go to the store as they are made, at least every ten seconds (as far as they are not slower; of a model whose
/// blocks stay in their files at the end of each pass, which is as large as the memory budget allows), and are taken
/// from there when model, tokens, directions and what is read
/// are the same. Throws before any forward pass: ConfigError for a protocol, template or tokenizer that does not fit and
/// for a range without any direction, ShapeError for a vector of another width or a conversation longer than n_ctx,
/// std::out_of_range for layers, std::invalid_argument for strengths that are not finite, no vectors, counts below
/// their least, or a memory budget that does not hold one conversation. What the reader of
/// the numbers should know is in Result::warnings.
INTROSPECT_EXPORT Result run_experiment(const graph::ModelPtr& model, const Protocol& protocol,
                                        const NamedVectors& vectors, const ExperimentOptions& options = {});

/// One of several experiments that run together.
struct Experiment {
  Protocol protocol;
  NamedVectors vectors;
  ExperimentOptions options;
};

/// What experiments that run together have in common. These members of their ExperimentOptions have no part in it.
struct SharedOptions {
  std::shared_ptr<Store> store;
  int64_t memory_budget = int64_t{512} << 20;
  double pass_seconds = 6;
  Progress progress, work;
  std::function<void(const RunPlan&)> before;
};

/// Experiments with vectors, strengths, layers, nulls and questions of their own, in common graphs: what they share runs
/// once. Results are in the order of the experiments, and each is what run_experiment makes of it. Throws as
/// run_experiment does, before anything of any of them has run.
INTROSPECT_EXPORT std::vector<Result> run_experiments(const graph::ModelPtr& model,
                                                      std::vector<Experiment> experiments,
                                                      const SharedOptions& shared = {});

/// What run_experiments would take with these arguments; nothing but the timed pass runs, and nothing is written.
///
/// The plan is the run's own. Of experiments that have more than some hundred thousand readings together one with fewer
/// nulls is made in its place and counted up. Throws as run_experiments does.
INTROSPECT_EXPORT RunPlan plan_experiments(const graph::ModelPtr& model, std::vector<Experiment> experiments,
                                           const SharedOptions& shared = {});

/// Several protocols with the same options, in common graphs: what their conversations share runs once. Results are in
/// the order of the protocols, and each is what run_experiment makes of it. Throws as run_experiment does, before
/// anything of any of them has run.
INTROSPECT_EXPORT std::vector<Result> run_experiments(const graph::ModelPtr& model,
                                                      const std::vector<Protocol>& protocols,
                                                      const NamedVectors& vectors,
                                                      const ExperimentOptions& options = {});

/// The same for several protocols with the same options.
INTROSPECT_EXPORT RunPlan plan_experiments(const graph::ModelPtr& model,
                                           const std::vector<Protocol>& protocols,
                                           const NamedVectors& vectors,
                                           const ExperimentOptions& options = {});

}  // namespace introspect::experiments

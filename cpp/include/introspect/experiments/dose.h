#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "introspect/core/progress.h"
#include "introspect/experiments/protocol.h"
#include "introspect/experiments/run.h"
#include "introspect/export.h"
#include "introspect/graph/graph.h"
#include "introspect/steering/control_vector.h"

namespace introspect::experiments {

/// Where a dose is measured.
///
/// Of a protocol it is the protocol's own question, with its paraphrases: the vector is added at the injected spans, and
/// after them where the protocol keeps the steering on. Prompts are steered at every token, as text that is generated
/// from them is.
struct DoseContext {
  std::optional<Protocol> protocol;
  std::vector<std::vector<int64_t>> prompts;  ///< token ids, special tokens included

  DoseContext(Protocol of) : protocol(std::move(of)) {}
  DoseContext(std::vector<std::vector<int64_t>> of) : prompts(std::move(of)) {}
};

/// What one injection does to the model, in units that vectors, blocks and models have in common.
///
/// Divergences are KL(injected || base) of the next token in nats, over the whole vocabulary, each the mean over the
/// tokens that it names (and over a protocol's paraphrases and passages). What is not measured is NaN.
struct Dose {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

  std::string concept_name;
  double strength = 0.0;
  int64_t first_layer = 0, last_layer = 0;
  int64_t null_index = -1;  ///< 0, 1, ... for a random rotation of the vector

  double kl = kNone;        ///< at the injected tokens
  double kl_later = kNone;  ///< at the tokens after them, down to the read position
  double kl_read = kNone;   ///< at the read position

  /// Length of what is added to a block's output, mean over the range's blocks, in standard deviations of the natural
  /// residual along the vector's own direction ...
  double sd = kNone;
  double sd_overall = kNone;  ///< ... along any direction (root mean square over the dimensions) ...
  double relative = kNone;    ///< ... and in median norms of the residual stream at the injected tokens

  /// Probability of the concept's word (its first token without and with a space before it) at the injected tokens: by
  /// the logit lens after the last block of the range, and as the next token. Without an injection: `_base`.
  double leak = kNone, leak_base = kNone;
  double next = kNone, next_base = kNone;
};

struct DoseOptions {
  std::vector<double> strengths{kDefaultStrength};
  StrengthUnit strength_unit = StrengthUnit::residual;
  std::vector<OwnStrengths> own_strengths;  ///< instead of `strengths`, as many of them
  std::vector<LayerRange> layers{LayerRange::fractions(kDefaultFirst, kDefaultLast)};
  Part part;          ///< of the injected tokens
  int64_t nulls = 0;  ///< random rotations of every vector, those that run_experiment makes of the same seed
  std::map<std::string, std::vector<steering::ControlVector>> null_vectors;  ///< numbered after them
  uint64_t seed = 0;
  bool later = true;  ///< run the tokens after the injected ones
  bool sizes = true;  ///< sd, sd_overall, relative
  bool leak = true;
  double tolerance = 1e-3;  ///< of solve_doses: how far off a target may be, as a share of it
  int64_t memory_budget = int64_t{512} << 20;  ///< bytes of one pass, weights aside
  Progress progress;                           ///< counts injections
};

/// The dose of every vector x range x strength (then of its rotations), measured in common graphs: beginnings, unsteered
/// runs and the layers below a range run once.
///
/// The natural residual is that of the unsteered conversation, all its tokens but the first and those of massive
/// activations (arXiv:2402.17762; here residuals of more than five median norms). Throws as run_experiment does, ConfigError for a protocol that adds no vectors, and
/// std::invalid_argument for a prompt without tokens.
INTROSPECT_EXPORT std::vector<Dose> measure_doses(const graph::ModelPtr& model, const DoseContext& context,
                                                  const NamedVectors& vectors,
                                                  const DoseOptions& options = {});

/// A dose to be reached: "kl=0.5", "kl_later=0.1", "kl_read=0.2" (nats), "sd=2", "sd_overall=10".
struct DoseTarget {
  std::string what = "kl";
  double value = 0.0;

  /// Throws std::invalid_argument for another name and for a value that is not a number above 0.
  INTROSPECT_EXPORT static DoseTarget parse(const std::string& text);
  INTROSPECT_EXPORT std::string text() const;
};

/// The injection that reaches a target.
struct SolvedDose {
  Dose dose;  ///< at the strength that was found
  double target = 0.0;
  bool is_monotone = true;  ///< more strength gave more dose wherever it was measured on the way
  int64_t n_measured = 0;   ///< strengths
};

/// The strength of every vector x range (then of its rotations) that gives the target, within `tolerance` of it.
///
/// A grid of strengths finds where the dose first exceeds the target, and interpolation of its logarithm over the
/// logarithm of the strength narrows that down. Where the dose does not rise with the strength throughout, it is the
/// smallest strength that reaches the target, as far as the grid (of ratio 2) sees. `strengths` of the options are not
/// used. Throws as measure_doses does, and std::invalid_argument for a target that no strength reaches, with the range
/// that is reached.
INTROSPECT_EXPORT std::vector<SolvedDose> solve_doses(const graph::ModelPtr& model,
                                                      const DoseContext& context, const NamedVectors& vectors,
                                                      const DoseTarget& target,
                                                      const DoseOptions& options = {});

/// A null that does as much to the model as the vector does at its strength.
struct EqualDose {
  SolvedDose solved;  ///< of the null: at `solved.dose.strength` it has the vector's dose
  Dose vector;        ///< of the vector, at its own strength
  steering::ControlVector
      added;  ///< what that adds to each block: inject it at strength 1, in StrengthUnit::absolute
};

/// For every vector x range x strength each of its nulls (`nulls` rotations, then `null_vectors`), solved by itself for
/// the vector's own dose. A search begins at the vector's strength, and all of them take their steps in common graphs.
/// `what`: "kl", "kl_later" or "kl_read". Throws as solve_doses does, std::invalid_argument without
/// nulls and for a strength that is not above 0.
INTROSPECT_EXPORT std::vector<EqualDose> equal_doses(const graph::ModelPtr& model, const DoseContext& context,
                                                     const NamedVectors& vectors,
                                                     const DoseOptions& options = {},
                                                     const std::string& what = "kl");

}  // namespace introspect::experiments

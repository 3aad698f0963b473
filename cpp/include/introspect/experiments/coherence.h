#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "introspect/experiments/dose.h"
#include "introspect/export.h"

namespace introspect::experiments {

/// How steered text reads beside unsteered text.
///
/// Texts are what the model goes on with, greedily, after each question or prompt of the context, steered as the context
/// has it. The unsteered model scores both.
struct Coherence {
  std::string concept_name;
  double strength = 0.0;
  int64_t first_layer = 0, last_layer = 0;
  int64_t null_index = -1;

  /// exp of the mean over all tokens of the texts of -log p(token | what stands before), by the unsteered model after the
  /// unsteered context; and that of its own texts.
  double perplexity = 0.0, perplexity_base = 0.0;
  /// Largest share, over the texts, of runs of three tokens that stood in the text before.
  double repetition = 0.0, repetition_base = 0.0;
  bool is_coherent = false;  ///< within the factor, and no more repetition: see CoherenceOptions
  std::vector<std::string> texts, texts_base;

  /// 1: reads as the unsteered text; near 0: broken. min(1, perplexity_base / perplexity) times
  /// 1 - max(0, repetition - repetition_base).
  INTROSPECT_EXPORT double score() const;
};

struct CoherenceOptions : DoseOptions {
  int64_t max_new_tokens = 40;
  double factor = 8.0;            ///< perplexity may be so many times that of the unsteered texts
  double more_repetition = 0.15;  ///< repetition may be so much larger
  bool fine = true;               ///< windows to a factor of 1.19, or of 2
};

/// Coherence of every vector x range x strength (then of its rotations). Texts are drawn side by side.
///
/// Throws as measure_doses does, ShapeError where a text does not fit into n_ctx, std::invalid_argument for a count below 1,
/// a factor that is not above 0 and a repetition below 0.
INTROSPECT_EXPORT std::vector<Coherence> measure_coherence(const graph::ModelPtr& model,
                                                           const DoseContext& context,
                                                           const NamedVectors& vectors,
                                                           const CoherenceOptions& options = {});

/// The strengths from 0 on at which steered text is coherent.
struct CoherentWindow {
  Coherence largest;             ///< at the largest strength of the window
  double broken = 0.0;           ///< the smallest strength that was tried and is not coherent; infinity: none
  std::vector<Coherence> tried;  ///< by strength
};

/// The window of every vector x range (then of its rotations).
///
/// Strengths of ratio 2 are tried, which add from 1/4 median residual norm on over the range's blocks together (from 1/32 on
/// where that is not coherent), until one is not coherent; then, if `fine`, three between it and the one before: the
/// largest strength is known to a factor of 1.19. A strength counts only if all smaller ones that were tried are coherent. `strengths` of the options are not used. Throws as
/// measure_coherence does, and Error for a window that is empty: not even the smallest strength is coherent.
INTROSPECT_EXPORT std::vector<CoherentWindow> coherent_windows(const graph::ModelPtr& model,
                                                               const DoseContext& context,
                                                               const NamedVectors& vectors,
                                                               const CoherenceOptions& options = {});

/// The strengths of every vector x range that give doses: "kl=0.5" and the like (DoseTarget::parse), and "coherent" for the
/// largest of the coherent window. They are what ExperimentOptions::own_strengths takes, with as many `strengths` (of any
/// numbers) as there are targets. Throws as solve_doses and coherent_windows do, std::invalid_argument for no targets.
INTROSPECT_EXPORT std::vector<OwnStrengths> strengths_of_doses(const graph::ModelPtr& model,
                                                               const DoseContext& context,
                                                               const NamedVectors& vectors,
                                                               const std::vector<std::string>& targets,
                                                               const CoherenceOptions& options = {});

}  // namespace introspect::experiments

#pragma once

#include <memory>

#include <torch/types.h>

#include "introspect/sae/trainer.h"

#include "sae/training/pass.h"
#include "sae/training/state.h"

namespace introspect::sae::training {

/// A trainer before its first step. `w` are held, not copied.
std::unique_ptr<State> new_state(TrainerOptions options, DictionaryOrigin origin, int64_t d_in, int64_t d_out,
                                 const DictionaryWeights& w);
DictionaryWeights zeros_like(const DictionaryWeights& w);

/// Copies given weights over those of a start; ones that are not given stay. Throws ConfigError, ShapeError and
/// std::invalid_argument.
void take_weights(DictionaryWeights& w, const DictionaryWeights& start);

/// A batch at the beginning of a step.
Pass pass_of(const State& state, const Batch& batch);
/// Losses and gradients of the objective.
void run(Pass& pass, const Annealing& annealing);
/// Takes the part of W_dec's gradient along its rows off, where they stay of length 1.
void project(Pass& pass);

/// Throws Error for a loss or gradient that is not finite, and for features that are all dead.
void check_finite(const TrainerMetrics& metrics, const TrainerOptions& options, bool all_dead);

/// What gradients are times so that all together are no longer than the clip, as torch.nn.utils.clip_grad_norm_.
double clip_scale(const TrainerOptions& options, double gradient_norm);

/// Adam's step and all that follows it: norms, thresholds, annealing, counters.
void update(State& state, const Pass& pass, double lr, double scale);

/// Share of the last rows in which each feature was active, float64 [F].
torch::Tensor firing_rates(const State& state);

}  // namespace introspect::sae::training

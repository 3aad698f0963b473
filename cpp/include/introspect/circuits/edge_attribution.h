#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/metric.h"
#include "introspect/circuits/circuit.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::circuits {

/// A metric of one prompt's whole logits [1, T, V]: one number, differentiable. Slower than metrics as data.
using LogitsMetric = std::function<torch::Tensor(const torch::Tensor& logits_1TV)>;

/// Prompts and what is measured of a run of each.
struct Prompts {
  std::vector<torch::Tensor> clean;       // int64 [T] each
  std::vector<torch::Tensor> corrupted;   // of the same lengths; empty where nothing needs them
  std::vector<analysis::Metric> metrics;  // one for each, or one for all
  LogitsMetric of_logits;                 // instead of them
};

/// What takes the place of a sender's output.
enum class Ablation {
  patching,  // its output in the corrupted run
  zero,
  mean,             // its mean over prompts and positions
  mean_positional,  // its mean over prompts, at each position
};

struct AblationOptions {
  Ablation ablation = Ablation::patching;
  std::vector<torch::Tensor>
      mean_over;  // prompts of the means; empty: the corrupted ones, or else the clean ones
};

enum class EdgeMethod {
  eap,                 // gradients at the clean run
  eap_ig,              // their mean along the way from the corrupted to the clean embedding
  eap_ig_activations,  // the same for each layer's heads, and each MLP, along the way of its own output
  clean_corrupted,     // their mean of the clean and the corrupted run
  exact,               // each edge patched in a run of its own
};

struct EdgeAttributionOptions : AblationOptions {
  EdgeMethod method = EdgeMethod::eap;
  int64_t ig_steps = 5;

  /// Of integrated gradients: points k / steps for k = 0 to steps - 1, as in EAP-IG (a left Riemann sum from the
  /// corrupted end), or those of Gauss and Legendre, with which few steps come close to the integral.
  bool gauss = false;

  bool per_position = false;       // scores of each position as well; prompts are then of one length
  bool ungrouped = false;          // a key and a value receiver for each query head
  std::vector<std::string> edges;  // exact: only these; empty: all
  Progress progress;
};

struct EdgeAttribution {
  Circuit circuit;            // every edge, with its score: the mean over prompts
  torch::Tensor by_position;  // float64 [T, senders, receivers]; undefined unless asked for
  torch::Tensor clean,
      corrupted;  // float64 [prompts]: the metric in both runs; corrupted undefined without such prompts
};

/// What patching each edge does to the metric, by first order (or exactly): how much the metric changes when the
/// sender's output, as one receiver alone sees it, is replaced.
///
/// score[u, v] = mean over prompts of sum over positions of (alternative_u - clean_u) . dm/dinput_v, the full derivative
/// through the receiver's norm. Positive: replacing raises the metric. All receivers' gradients come from one backward
/// pass (one for each point of integrated gradients, in one batch). Identities: the sum over a sender's edges is
/// attribution patching of it; of eap_ig, the sum over the edges of `input` tends to m(corrupted) - m(clean). In
/// eap_ig_activations the same holds for the outputs of each layer's heads, and of each MLP.
/// Norms of float64 models are float64 here (Model::forward rounds RMS norms to float32 as transformers does).
/// Throws what prompts and options give cause to, before anything runs: see Prompts; std::invalid_argument for
/// ig_steps below 1, per_position with prompts of several lengths, metrics without gradients (rank, accuracy) unless
/// exact; Error for scores that are not finite, once they are known; ShapeError for pairs of unequal length, both lengths and the first token that differs named.
/// Source: Syed et al. 2023, arXiv:2310.10348; Hanna et al. 2024, arXiv:2403.17806. The package's activations method
/// averages every edge's gradient over the ways of all components; here an edge's is of its own sender's way.
INTROSPECT_EXPORT EdgeAttribution edge_attribution(const models::Model& model, const Prompts& prompts,
                                                   const EdgeAttributionOptions& options = {});

}  // namespace introspect::circuits

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/lens.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/hooks/hook_registry.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

struct LensOptions {
  std::vector<int64_t> layers;     ///< of those the lens reads; empty: all, the last one included
  std::vector<int64_t> positions;  ///< negative ones count from the end; empty: all
  bool incl_mid = false;  ///< of a logit lens: between attention and MLP of each of these layers, too
  int64_t top_k = 5;
  std::vector<int64_t> targets;                ///< tokens whose log-probability and rank are read everywhere
  bool measures = false;                       ///< fill LensReading::measures
  const hooks::HookRegistry* hooks = nullptr;  ///< in effect during the pass: what is read is what they make
  int64_t memory_budget = int64_t{256} << 20;  ///< bytes of logits and what is made of them, at a time
  Progress progress;
};

/// What a lens reads of one text: n streams at P positions.
struct LensReading {
  std::vector<int64_t> layers;      // of each stream: -1 is the embedding
  std::vector<std::string> labels;  // "embed", "3_mid", "3"
  std::vector<int64_t> positions, tokens;
  torch::Tensor top_ids, top_log_probs;          // int64, float [n, P, k], most probable first
  torch::Tensor target_log_probs, target_ranks;  // float, int64 [n, P, targets]; rank 1 is the most probable
  /// By name, float64 [n, P], in nats. With q what the lens predicts, p what the model does, and the next token of the
  /// text (NaN after its last):
  ///
  ///     entropy          -sum q log q                    cross_entropy    -log q(next token)
  ///     max_probability  max q                           rank             of the next token under q, from 1
  ///     forward_kl       KL(p || q)                      reverse_kl       KL(q || p)
  ///     js               (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2: Jensen and Shannon's
  ///     symmetric_kl     (KL(p || q) + KL(q || p)) / 2, which the tuned-lens package calls js_divergence
  ///     total_variation  sum |p - q| / 2
  std::map<std::string, torch::Tensor> measures;
};

/// Reads a text through a lens: one forward pass that keeps residuals of the chosen layers and positions alone, and runs
/// no further than they need. Logits are there a part at a time.
///
/// tokens int64 [1, T]. Throws std::out_of_range for layers, positions and tokens, ShapeError, std::invalid_argument for
/// top_k beyond the vocabulary and for incl_mid with translators, HookError for incl_mid where blocks are parallel, and
/// as Lens::check_model does: all before the pass.
INTROSPECT_EXPORT LensReading read_lens(const models::Model& model, const Lens& lens,
                                        const torch::Tensor& tokens, const LensOptions& options = {});

}  // namespace introspect::analysis

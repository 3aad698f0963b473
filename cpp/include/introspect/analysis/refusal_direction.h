#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/hooks/intervention.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

/// The mean activation of some texts less that of others before every block: float64 [positions, layers, D].
///
/// positions: of tokens, negative ones counted from each text's end. Read at hook_resid_pre, averaged in float64.
/// Throws as activations::collect_activations does.
INTROSPECT_EXPORT torch::Tensor mean_differences(const models::Model& model,
                                                 const std::vector<std::string>& positives,
                                                 const std::vector<std::string>& negatives,
                                                 const std::vector<int64_t>& positions,
                                                 const std::vector<int64_t>& layers,
                                                 int64_t memory_budget = int64_t{1} << 30,
                                                 const Progress& progress = {});

/// The direction [D] taken off everything that is written to the residual stream: hook_resid_pre, hook_attn_out and
/// hook_mlp_out of all blocks, at all positions. Throws ShapeError or std::invalid_argument for a direction that is none.
INTROSPECT_EXPORT std::vector<hooks::Intervention> ablation_everywhere(const models::Model& model,
                                                                       const torch::Tensor& direction_D);

/// What a direction does to a behaviour: that the next token is one of some, such as the first of a refusal.
struct DirectionScores {
  int64_t layer = 0, position = 0;
  double bypass = 0;  // mean over positives of log p - log(1 - p) with the direction ablated everywhere
  double induce = 0;  // over negatives, with the direction added before its layer
  double kl =
      0;  // nats, over negatives: of the next token's distribution from that with the direction ablated
};

struct DirectionSearchOptions {
  std::vector<int64_t> tokens;  ///< that begin the behaviour; p is their sum
  double most_kl = 0.1;         ///< where ablation changes harmless texts by more, the direction is not taken
  double least_induce = 0.0;
  double depth = 0.8;  ///< only layers before this share of the blocks
  int64_t memory_budget = int64_t{1} << 30;
  Progress progress;
};

/// Mean differences [positions, layers, D] judged on texts that they were not made of, in the order [layer, position].
///
/// Throws std::invalid_argument for no texts or no tokens, std::out_of_range for tokens or layers that are not there,
/// ShapeError for candidates of other shapes.
INTROSPECT_EXPORT std::vector<DirectionScores> score_directions(
    const std::shared_ptr<const models::Model>& model, const torch::Tensor& candidates_PLD,
    const std::vector<int64_t>& positions, const std::vector<int64_t>& layers,
    const std::vector<std::string>& positives, const std::vector<std::string>& negatives,
    const DirectionSearchOptions& options);

/// The place of the direction with the lowest bypass score among those within the limits; nothing if none is.
/// Source: Arditi et al. 2024, arXiv:2406.11717, appendix C.
INTROSPECT_EXPORT std::optional<size_t> select_direction(const std::vector<DirectionScores>& scores,
                                                         int64_t n_layers,
                                                         const DirectionSearchOptions& options);

/// How often log p - log(1 - p) of the behaviour is in texts as they are: the mean, in nats.
INTROSPECT_EXPORT double behaviour_score(const std::shared_ptr<const models::Model>& model,
                                         const std::vector<std::string>& texts,
                                         const DirectionSearchOptions& options);

/// How many tokens the chat template puts after the user's message, the generation prompt included.
/// Throws ConfigError for a model without one.
INTROSPECT_EXPORT int64_t n_tokens_after_instruction(const models::Model& model);

}  // namespace introspect::analysis

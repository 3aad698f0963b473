#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/circuits/attribution_graph.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"
#include "introspect/sae/cross_layer_transcoder.h"
#include "introspect/sae/dictionary.h"

namespace introspect::circuits {

/// Where a transcoder reads in a block, whose norm's scale is held fixed.
enum class TranscoderInput : uint8_t {
  residual,    ///< the stream before the norm: hook_mlp_in, hook_resid_mid
  normalized,  ///< after it, before its weight: ln2.hook_normalized
  mlp,         ///< what the MLP itself reads: mlp.hook_in
};

/// Transcoders from what the MLPs read to what they write: one a layer, skips allowed, or a cross-layer one; and SAEs of
/// what attention writes or of the stream.
///
/// An SAE stands in for the vector that it reads, as its features, its constant and its error. What comes later gets them
/// instead of what made that vector, which its features alone get: through an SAE of the stream everything passes, an MLP
/// without a transcoder is error as a whole.
struct Transcoders {
  std::map<int64_t, sae::Dictionary> layers;
  std::optional<sae::CrossLayerTranscoder> cross_layer;  ///< instead of them
  /// None: what the files say (their hook names), else ConfigError.
  std::optional<TranscoderInput> input;
  std::string name;
  /// Of hook_attn_out, of hook_resid_post or of hook_resid_pre (which is the one before's), by their hook names.
  std::vector<sae::Dictionary> saes;
};

/// What a graph explains, besides or instead of the likeliest next tokens.
struct GraphTarget {
  std::string name;
  /// [D]: dotted with the stream after block `layer`; of the last layer, with the stream after the final norm less its
  /// bias, as a row of the unembedding is.
  torch::Tensor direction_D;
  std::optional<int64_t> layer;  ///< none: after the final norm
  int64_t position = -1;         ///< negative: from the end
  double weight = 1;             ///< its share of influence
};

/// A vector that is added to the stream after a block at some positions, as an experiment injects a concept. It is a node of
/// the graph, one a layer.
struct Injection {
  int64_t layer = 0;
  std::vector<int64_t> positions;
  torch::Tensor vector_D;
};

struct AttributeOptions {
  double logit_mass = 0.95;  ///< the smallest set of next tokens with this probability ...
  int64_t max_logits = 10;   ///< ... and at most so many are targets, less the mean row of the unembedding
  std::vector<GraphTarget> targets;  ///< instead of them
  std::vector<Injection> injections;
  int64_t max_features = 7500;   ///< features that get a row: those of most influence so far
  int64_t edges_per_row = 4096;  ///< features of the largest |weight| that a row keeps; 0: all
  bool fold =
      true;  ///< what features without a node of their own contribute counts as their position's error
  bool mask_first = true;  ///< no features at the first position, where one token holds much of every norm
  int64_t rows_per_batch = 128;              ///< at most; fewer where memory is short
  int64_t batches_per_update = 8;            ///< features are ranked anew so often
  int64_t memory_budget = int64_t{2} << 30;  ///< bytes beside model, transcoders and result
  /// Rows are kept there batch by batch, so that a search that was ended goes on where it stood. Empty: nowhere.
  std::filesystem::path rows_folder;
  double time_budget = 0;  ///< seconds that features' rows may take by the estimate before them; 0: any
  Progress progress;
};

/// What a graph takes, known before its rows are made.
struct AttributionPlan {
  int64_t active_features = 0;
  int64_t rows = 0;  ///< of features, at most
  int64_t rows_per_batch = 0;
  double seconds = 0;  ///< for them, by some that were timed on this machine as it is now
  int64_t bytes = 0;   ///< beside model and dictionaries, at the most
};

/// The attribution graph of one prompt. One forward pass, then rows of the linear model from targets down, each computed
/// within its causal cone: nothing of the size nodes x nodes is made.
///
/// Throws ConfigError for transcoders of another model, whose output is not the MLP's, of an architecture that is not
/// linear where it is active (matching pursuit) or with an input norm of each row, and for a model on several devices;
/// ShapeError for tokens that are not [T] with 2 to n_ctx of them, std::out_of_range for layers and positions,
/// std::invalid_argument for options out of range and a budget that does not hold one row, or rows within its time, saying
/// what they would take; IoError for a rows_folder that holds another graph's.
INTROSPECT_EXPORT AttributionGraph attribute(const models::Model& model, const torch::Tensor& tokens_T,
                                             const Transcoders& transcoders,
                                             const AttributeOptions& options = {});

/// One forward pass and some rows, which are timed. Throws as attribute.
INTROSPECT_EXPORT AttributionPlan plan_attribution(const models::Model& model, const torch::Tensor& tokens_T,
                                                   const Transcoders& transcoders,
                                                   const AttributeOptions& options = {});

}  // namespace introspect::circuits

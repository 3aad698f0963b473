#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "introspect/circuits/attribute.h"
#include "introspect/circuits/attribution_graph.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::circuits {

/// A part of the stream that a head reads at one position.
struct QkPart {
  enum class Kind : uint8_t {
    feature,    ///< of a transcoder, active at this position: layer and number
    error,      ///< what a layer's transcoder leaves out of its MLP's output (without one, all of it)
    attention,  ///< what a layer's attention wrote
    token,      ///< the embedding
    bias,       ///< position embedding, the transcoders' constants, and the biases of norm and projection
  };
  Kind kind = Kind::feature;
  int64_t layer = -1;                   ///< of features, errors and attention
  int64_t feature = -1;                 ///< of features
  double value = 0;                     ///< activation of a feature
  FeatureSite site = FeatureSite::mlp;  ///< of features and errors
};

/// Why a head attends from one position to another: its score as a sum over pairs of parts, one at each position.
///
/// The scales of the norms, also those of queries and keys, are held fixed, and the rotations are those of the positions: the
/// score is then bilinear in what stands at the two, exactly. A soft cap comes after it: `score` and `terms` are before it.
struct QkAttribution {
  int64_t layer = 0, head = 0, query = 0, key = 0;  ///< query and key are positions
  std::vector<QkPart> query_parts, key_parts;
  torch::Tensor
      terms;  ///< [query parts, key parts], float32 (float64 of a float64 model); their sum is the score
  double score = 0;     ///< before the softmax, divided as the model divides
  double pattern = 0;   ///< the head's attention from query to key
  double soft_cap = 0;  ///< of the model; 0: none
};

/// Parts are what an SAE of the stream stands for, if there is one below, and what is written after it.
///
/// Throws as attribute does for tokens and dictionaries (which may be none: then MLPs are errors), std::out_of_range for a
/// layer, head or positions that are not there, and std::invalid_argument for a key that the query does not see.
/// Source: transformer-circuits.pub/2025/attention-qk; the bilinear form with rotation, norms of queries and keys and gains.
INTROSPECT_EXPORT QkAttribution qk_attribution(const models::Model& model, const torch::Tensor& tokens_T,
                                               int64_t layer, int64_t head, int64_t query, int64_t key,
                                               const Transcoders& transcoders = {}, bool mask_first = true);

/// Which heads carry an edge of a graph: at each layer between its ends, the parts that go through each head and the part
/// that goes past attention. Each layer's parts sum to the edge (of a cross-layer feature, to what it wrote below that layer
/// of it); parts of different layers do not add.
struct HeadLoadings {
  std::vector<int64_t> layers;   ///< of attention, ascending
  torch::Tensor heads;           ///< [layers, heads]
  torch::Tensor past_attention;  ///< [layers]
  double edge = 0;
};

/// One sweep up from the source and one down from the target. Nodes are those of a graph of the same model, prompt and
/// dictionaries: a feature, error or token as source, a feature or a logit (feature = its token) as target.
/// Throws std::invalid_argument for other kinds and features that are not active, and as attribute.
INTROSPECT_EXPORT HeadLoadings head_loadings(const models::Model& model, const torch::Tensor& tokens_T,
                                             const Transcoders& transcoders, const GraphNode& source,
                                             const GraphNode& target, bool mask_first = true);

}  // namespace introspect::circuits

#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::circuits {

enum class GraphNodeKind : uint8_t {
  feature,  ///< of a transcoder that is active: layer, position, number
  error,    ///< what dictionaries leave out at a position: of an MLP's output, or where an SAE is
  token,    ///< an embedding
  bias,  ///< what a layer adds whatever it reads: of attention, norms, transcoders; layer -1: position embeddings
  logit,      ///< a target
  injection,  ///< what an experiment adds to the stream after a layer
};

/// Where a dictionary reads and writes.
enum class FeatureSite : uint8_t {
  attention,  ///< an SAE of what attention adds to the stream: hook_attn_out
  mlp,        ///< a transcoder, from what the MLP reads to what it adds
  residual,   ///< an SAE of the stream after the block: hook_resid_post
};

/// A node of a graph.
struct GraphNode {
  GraphNodeKind kind = GraphNodeKind::feature;
  int64_t layer = 0;     ///< -1 of tokens, the number of layers of logits
  int64_t position = 0;  ///< -1 of biases and injections
  int64_t feature = 0;   ///< of the transcoder; the token's id of tokens and logits; -1 else
  double value = 0;      ///< the activation of a feature; the probability (or weight) of a target
  std::string name;      ///< of tokens and targets: their text
  FeatureSite site = FeatureSite::mlp;  ///< of features and errors

  /// Edges lead from lower to higher: what attention of a layer adds, then its MLP, what is injected, and the stream after it.
  INTROSPECT_EXPORT int64_t depth() const;
  bool operator==(const GraphNode&) const = default;
};

/// Which nodes a node counts, and what the shares of influence are of.
struct InfluenceOptions {
  bool biases = false;  ///< bias nodes take part; published scores leave them out
};

struct PruneOptions : InfluenceOptions {
  double node_threshold = 0.8;   ///< the smallest set of nodes with this share of all influence stays
  double edge_threshold = 0.98;  ///< and of the edges between them
};

/// How much of a graph goes through its features.
struct GraphScores {
  double replacement = 0;  ///< influence of tokens / (tokens + errors)
  double completeness =
      0;  ///< share of in-edges that do not come from errors, each node weighed by its influence
};

/// A way from one node to another.
struct GraphPath {
  std::vector<int64_t> nodes;  ///< from the first to the last
  double weight = 0;           ///< the product of its edges' shares of their targets' in-edges
};

/// Which features made a model say what it says: nodes, and how much each contributes to each one after it.
///
/// Edge (t, s) is what s adds to t's pre-activation (of a target: its logit) in the model with its attention patterns,
/// norms' scales and MLP outputs held fixed, in which it is linear: with errors and biases the edges of a node sum to it.
/// Nodes stand in order: features by depth, position and number, then errors, tokens, biases, injections and
/// targets. A value.
/// Source: Ameisen et al. 2025, "Circuit Tracing".
struct INTROSPECT_EXPORT AttributionGraph {
  std::string model_name, model_hash, prompt;
  std::vector<int64_t> tokens;
  std::vector<std::string> token_texts;
  std::string transcoders;   ///< a name for the set
  std::string notes = "{}";  ///< JSON: how it was made

  std::vector<GraphNode> nodes;

  /// Edges by target: row i is of node targets[i], its entries offsets[i] to offsets[i + 1].
  std::vector<int64_t> targets;
  torch::Tensor offsets;  ///< int64 [targets + 1]
  torch::Tensor sources;  ///< int64 [entries], ascending within a row
  torch::Tensor weights;  ///< float32 (float64 of a float64 model) [entries], signed

  int64_t n_nodes() const { return static_cast<int64_t>(nodes.size()); }
  int64_t n_edges() const { return sources.size(0); }

  /// Throws std::invalid_argument for edges that are not from a node to a later one, values that are not finite, indices
  /// out of range or nodes that stand twice: what a file could say.
  void check() const;

  /// [nodes, nodes], row t and column s; for small graphs. Throws std::invalid_argument for more than 20,000 nodes.
  torch::Tensor adjacency() const;

  /// The sum of each node's in-edges, float64 [nodes]; 0 of nodes without.
  torch::Tensor in_sums() const;

  /// v = sum over k >= 1 of w A^k, A the rows' absolute values over their sums and w the targets' weights: how much
  /// of the targets runs through each node, float64 [nodes].
  torch::Tensor influence(const InfluenceOptions& options = {}) const;

  GraphScores scores(const InfluenceOptions& options = {}) const;

  /// Without the nodes and edges that carry little; tokens and targets stay, and features that nothing leads to or that
  /// lead nowhere go. Throws std::invalid_argument for thresholds that are not in 0 to 1.
  AttributionGraph pruned(const PruneOptions& options = {}) const;

  /// Only these nodes and the edges between them. Throws std::out_of_range.
  AttributionGraph subgraph(const std::vector<int64_t>& keep) const;

  /// The heaviest ways from one node to another, heaviest first, at most n.
  std::vector<GraphPath> paths(int64_t from, int64_t to, int64_t n = 10) const;

  /// The number of a node. Throws std::out_of_range where there is none.
  int64_t find(GraphNodeKind kind, int64_t layer, int64_t position, int64_t feature,
               FeatureSite site = FeatureSite::mlp) const;

  /// Ours: a .safetensors with the edges and everything else as its metadata. Throws IoError.
  void save(const std::filesystem::path& path) const;
  static AttributionGraph load(const std::filesystem::path& path);

  /// The graph JSON of circuit-tracer and Neuronpedia (schema 1), bias and injection nodes included if asked for. `slug` and `scan`
  /// name it there.
  std::string to_json(const std::string& slug, const std::string& scan, bool with_biases = false) const;

  /// Reads such JSON. Throws ConfigError for one that is none, of a newer schema, or too large to be one.
  static AttributionGraph from_json(const std::string& text);
};

/// "feature", "error", "token", "bias", "logit", "injection".
INTROSPECT_EXPORT std::string to_string(GraphNodeKind kind);
/// "attention", "mlp", "residual".
INTROSPECT_EXPORT std::string to_string(FeatureSite site);

}  // namespace introspect::circuits

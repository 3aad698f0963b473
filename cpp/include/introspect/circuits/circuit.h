#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/circuits/nodes.h"
#include "introspect/export.h"
#include "introspect/hooks/intervention.h"

namespace introspect::circuits {

/// A subgraph of a model's nodes and edges, with a score for each edge. A value: what selects or prunes returns another.
///
/// A node is in the circuit if an edge of it is; `input` and `logits` always are.
struct INTROSPECT_EXPORT Circuit {
  Nodes nodes;
  torch::Tensor scores;    // float64 [senders, receivers], 0 where there is no edge
  torch::Tensor in_graph;  // bool, likewise

  /// Every edge of a model, without scores.
  static Circuit whole(const Nodes& nodes);

  /// These edges of a model, by name. Throws std::invalid_argument for one that it does not have.
  static Circuit of_edges(const Nodes& nodes, const std::vector<std::string>& names);

  int64_t n_edges() const;

  struct Edge {
    int64_t sender, receiver;
    double score;
  };
  /// The edges in the circuit, those of the largest |score| first; of equal ones those of the lower sender.
  std::vector<Edge> edges() const;

  /// Senders in the circuit, ascending; `input` always.
  std::vector<int64_t> senders() const;

  /// The n edges of the largest score, or |score|, and, pruned, of these what lies on a way from input to logits.
  ///
  /// Throws std::invalid_argument for n not from 0 to the number of edges.
  Circuit top(int64_t n, bool absolute = true, bool prune = true) const;

  /// n edges taken one by one from the logits up: the best one into a node that is in already.
  ///
  /// Source: apply_greedy of the EAP-IG package. Throws as top.
  Circuit greedy(int64_t n, bool absolute = true, bool prune = true) const;

  /// Without the edges that are on no way from input to logits.
  Circuit pruned() const;

  /// The same edges with other scores, [senders, receivers] of any dtype; where there is no edge they become 0.
  ///
  /// Throws ShapeError for another shape.
  Circuit with_scores(const torch::Tensor& scores) const;

  /// The score of each sender: the sum of those of its edges, float64 [senders]. Of EAP this is attribution patching.
  torch::Tensor sender_scores() const;

  /// One receiver of keys and of values for each query head instead of each group, as the EAP-IG package needs: scores are
  /// split evenly, so that sums stay.
  Circuit ungrouped() const;

  /// EAP-IG's format: {"cfg", "nodes": {name: {"in_graph"}}, "edges": {name: {"score", "in_graph"}}}.
  ///
  /// Circuits of grouped keys name groups ("a1.g0<k>"), which that package does not know: ungrouped() goes with it.
  std::string to_json() const;

  /// Throws ConfigError for a text that is no circuit, or that names nodes or edges its own cfg does not have.
  static Circuit from_json(const std::string& text);

  /// Throws IoError as well.
  void save(const std::filesystem::path& path) const;
  static Circuit load(const std::filesystem::path& path);

  /// Throws ConfigError, naming both, unless this is a circuit of such a model.
  void check_fits(const models::Config& cfg) const;

  /// Interventions that make a run of the model one of the circuit's nodes: every head and MLP outside writes zero, or
  /// what `activations` holds at its attn.hook_z or hook_mlp_out ([D], [P, D], ... as hooks::Intervention takes them).
  ///
  /// Edges between nodes that are in are all kept: for single edges there is run_circuit. Throws std::invalid_argument for
  /// activations that are needed and not there.
  std::vector<hooks::Intervention> outside(
      const std::map<std::string, torch::Tensor>& activations = {}) const;

  /// A picture: layers from below, edges as lines whose width is their |score| and whose colour is its sign.
  ///
  /// Throws std::invalid_argument for more than 2,000 edges, which would be a texture.
  std::string svg() const;
};

/// How two circuits of one model agree.
struct Comparison {
  int64_t n_first = 0, n_second = 0, n_both = 0;  // edges
  double jaccard = 0;                             // both / either; 1 if neither has edges
  double node_jaccard = 0;                        // likewise of heads and MLPs
  double spearman = 0;  // of |scores| over all edges of the model; NaN where one has none
};

/// Throws ConfigError for circuits of different models.
INTROSPECT_EXPORT Comparison compare(const Circuit& first, const Circuit& second);

}  // namespace introspect::circuits

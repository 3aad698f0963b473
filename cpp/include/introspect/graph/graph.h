#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/core/sole_user.h"
#include "introspect/engine/captured.h"
#include "introspect/engine/plan_summary.h"
#include "introspect/export.h"
#include "introspect/hooks/intervention.h"
#include "introspect/models/model.h"

namespace introspect::graph {

using NodeId = int64_t;
using ReadId = int64_t;
using ModelPtr = std::shared_ptr<const models::Model>;

using engine::Read;

struct RunOptions {
  int64_t memory_budget = int64_t{1} << 30;  ///< bytes of one pass, weights aside
  int64_t most_rows = engine::PlanOptions{}.most_rows;
  Progress progress;  ///< counts tokens times layers

  /// As engine::PlanOptions has them: how much a pass runs before it hands out what it has read.
  int64_t most_token_layers = engine::PlanOptions{}.most_token_layers;
  int64_t read_token_layers = 0;  ///< what each reading costs its caller, in tokens times layers
  int64_t least_reads = 1;        ///< of a pass

  /// Called once, between planning and the first pass. An exception from it ends the run.
  std::function<void(const engine::PlanSummary&)> on_plan;
};

/// A KV-cache experiment as data: segments of tokens that continue one another's caches, and what is read of them.
///
///     Graph graph;
///     const auto before = graph.segment(model, system_ids);
///     const auto plain = graph.segment(model, turn_ids, before);
///     const auto steered = graph.segment(model, turn_ids, before, {intervention});  // positions count from its start
///     const auto asked = graph.segment(model, question_ids, steered);
///     const auto read = graph.read(asked);                  // the last residual at the last token
///     graph.run({}, [&](ReadId id, engine::Captured kept) { ... });
///
/// A node is what its content is: equal segments after equal parents are one node, equal beginnings of different
/// segments run once, and segments that differ in their interventions only share the layers below the first of them.
/// Nothing runs that is not read. A plan changes cost, never results.
///
/// One thread at a time may use a graph: a second one gets an Error.
///
/// Models whose blocks stay in their files (models::LoadOptions::keep_blocks) are read as a pass needs them: one layer of
/// each at a time is in memory.
class INTROSPECT_EXPORT Graph {
 public:
  /// `tokens` after `parent`'s (none: at the start of a sequence), run by `model`, with `interventions` whose positions
  /// count from the segment's first token and which end with it.
  ///
  /// The parent may have run in another model of equal layers, heads, dtype and device: its keys and values are then
  /// what this model sees. Throws ShapeError for such a model that differs or more than n_ctx positions,
  /// std::invalid_argument for no tokens or rows of a batch, std::out_of_range for tokens, nodes or positions that are not
  /// there, ConfigError for interventions after the last block, and as hooks::validate does.
  NodeId segment(const ModelPtr& model, const std::vector<int64_t>& tokens, std::optional<NodeId> parent = {},
                 const std::vector<hooks::Intervention>& interventions = {});

  /// `target` with the keys and values of positions [first, last) of the sequence taken from `source`. It can be
  /// continued, and its cache read.
  ///
  /// The source must reach `last` and hold the same tokens there, or else positions would be of other words. Throws
  /// std::out_of_range for positions, std::invalid_argument for other tokens.
  NodeId splice(NodeId target, int64_t first, int64_t last, NodeId source);

  /// Asks for a reading; equal ones are one. Throws std::out_of_range for nodes, positions, layers and heads that are not
  /// there, HookError for a point that this model does not have, std::invalid_argument for scores and patterns (ask for
  /// attention) and for activations of a splice.
  ReadId read(NodeId node, Read read = {});

  int64_t size() const;
  int64_t n_reads() const;

  /// Number of tokens of the sequence down to a node's end, and those tokens.
  int64_t length(NodeId node) const;
  std::vector<int64_t> tokens(NodeId node) const;

  /// The identity of a node: hex SHA-256 of its model, tokens and interventions, and those of all before it. Of two
  /// models with one hash the second is another one.
  std::string hash(NodeId node) const;

  /// What would run. Throws std::invalid_argument for nothing to read and for a budget too small for one reading.
  engine::PlanSummary plan(const RunOptions& options = {}) const;

  /// Runs everything that is read and hands each reading out as its pass ends: activations [positions, layers, ...],
  /// attention [positions, layers, heads, keys], or a cache.
  ///
  /// An exception from `on_read` or the progress callback ends the run. Throws as `plan` does.
  void run(const RunOptions& options,
           const std::function<void(std::vector<std::pair<ReadId, engine::Captured>>)>& on_read) const;

  /// The same, all at once, in the order in which readings were asked for.
  std::vector<engine::Captured> run(const RunOptions& options = {}) const;

  /// The graph as an SVG document: segments as boxes from left to right, those with interventions, of other models and
  /// splices coloured. Throws std::invalid_argument for more than 400 nodes.
  std::string svg() const;

 private:
  friend class Lowering;

  struct Node {
    int64_t model = -1;  // -1: a splice
    std::optional<NodeId> parent;
    std::vector<int64_t> tokens;
    std::vector<hooks::Intervention> interventions;
    std::vector<std::string> effects;  // of each: equal where they do the same, wherever they do it
    NodeId source = -1;                // of a splice; parent is its target
    int64_t first = 0, last = 0;       // positions that it takes
    int64_t length = 0;                // of the whole sequence
    std::string hash;
  };

  const Node& node(NodeId id) const;
  int64_t place_of(const ModelPtr& model);
  NodeId insert(Node node, const std::string& content);
  using OwnOperand = std::pair<const std::string, torch::Tensor>;
  const OwnOperand& own_operand(const torch::Tensor& tensor);
  std::string take_effect(hooks::Intervention& intervention);

  std::vector<ModelPtr> models_;
  std::vector<Node> nodes_;
  std::vector<std::pair<NodeId, Read>> reads_;
  std::unordered_map<std::string, NodeId> by_hash_;
  std::unordered_map<std::string, ReadId> read_by_hash_;
  std::unordered_map<std::string, torch::Tensor> operands_;  // by hash
  std::unordered_map<const void*, std::string> operand_at_;  // hash by the memory that was hashed
  SoleUser user_;
};

}  // namespace introspect::graph

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/cache/kv_cache.h"
#include "introspect/graph/graph.h"

#include "experiments/design.h"

namespace introspect::experiments {

/// One reading: a question under an injection, or without one.
struct Wanted {
  const Scene* scene = nullptr;
  const Ask* ask = nullptr;
  const Injection* injection = nullptr;  // nullptr: the unsteered run
  std::string key;                       // in the store
};

/// What a graph has read for one reading.
struct Parts {
  std::vector<torch::Tensor> values;  // of MergedNeeds::steered (or unsteered): [positions, layers, ...]
  std::optional<cache::KVCache> cache;
  int64_t n_missing = 0;
};

/// What injections need to know of other runs.
struct Measured {
  /// Median norms of the residual stream after each block, over the injected tokens of the unsteered run.
  std::map<const Scene*, std::map<int64_t, double>> norms;
  /// Residuals [T, D] after each injected block at all tokens that stand in the injected ones' place, by
  /// Injection::other.
  std::map<std::pair<const Scene*, std::string>, Directions> others;
  /// What readouts need of the unsteered run, by question.
  std::map<std::pair<const Scene*, const Ask*>, Parts> base;
};

/// What is added to each block's output: the directions times the strength in its unit.
Directions scaled(const Scene& scene, const Injection& injection, StrengthUnit unit,
                  const Measured& measured);

/// The length of what is added to each block's output.
std::map<int64_t, double> added_lengths(const Scene& scene, const Injection& injection, StrengthUnit unit,
                                        const Measured& measured);

/// Readings of an experiment in a graph, which may hold those of other experiments too.
///
/// `measured` is what injections are made with, and where what is measured goes.
class ExperimentGraph {
 public:
  ExperimentGraph(graph::Graph& graph, const graph::ModelPtr& model, const Protocol& protocol,
                  const Design& design, StrengthUnit unit, Measured& measured);

  void want(const Wanted& wanted);
  void measure_norms(const Scene& scene);
  void measure_other(const Scene& scene, const std::string& other);
  /// What readouts need of the unsteered run at a question, unless it is known or this graph reads it already.
  void measure_base(const Scene& scene, const Ask& ask);

  const std::vector<Wanted>& wanted() const { return wanted_; }

  /// Takes what the graph has read; returns the places in `wanted` of readings whose parts are now all there.
  std::vector<std::pair<size_t, Parts>> take(
      const std::vector<std::pair<graph::ReadId, engine::Captured>>& readings);

 private:
  /// What a reading of the graph is for.
  struct Use {
    enum class What { need, cache, norm, other, base } what;
    size_t place = 0;   // in `wanted`, for the first two
    size_t number = 0;  // of the need
    const Scene* scene = nullptr;
    const Ask* ask = nullptr;
    std::string other{};
    int64_t layer = 0;
    int64_t first_row = 0, n_rows = 0;  // of a need at the injected tokens, which may be of several segments
  };
  struct Prefilled {
    graph::NodeId end = -1;
    std::vector<std::pair<graph::NodeId, int64_t>> injected;  // segments that are injected, and their tokens
  };

  std::optional<graph::NodeId> parent_of_span(const Scene& scene);
  const Prefilled& prefill(const Scene& scene, const Injection* injection);
  graph::NodeId ask(const Scene& scene, const Ask& ask, const Injection* injection);
  std::vector<hooks::Intervention> interventions(const Scene& scene, const Injection& injection,
                                                 std::pair<int64_t, int64_t> range) const;
  void read(graph::NodeId node, graph::Read read, Use use);
  void take(const Use& use, const engine::Captured& captured);
  void read_need(const Wanted& wanted, const Need& need, Use use);
  void read_injected(const Prefilled& prefilled, const Need& need, Use use);
  bool has_base(const Scene& scene, const Ask& ask) const;
  torch::Tensor attention_to_spans(const Scene& scene, const Injection* injection,
                                   const torch::Tensor& values) const;

  const graph::ModelPtr& model_;
  const Protocol& protocol_;
  const Design& design_;
  const StrengthUnit unit_;
  Measured& measured_;
  graph::Graph& graph_;
  std::vector<Wanted> wanted_;
  std::vector<Parts> parts_;
  std::vector<size_t> complete_;  // that wait for the unsteered run they are compared with
  std::unordered_map<graph::ReadId, std::vector<Use>> uses_;
  std::set<std::pair<const Scene*, const Ask*>> bases_;  // that this graph reads
  std::map<const Scene*, graph::NodeId> before_;
  std::map<std::pair<const Scene*, const Injection*>, Prefilled> prefilled_;
};

}  // namespace introspect::experiments

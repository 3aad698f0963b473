#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "experiments/cell_keys.h"
#include "experiments/continuation.h"
#include "experiments/design.h"
#include "experiments/experiment_graph.h"
#include "introspect/experiments/run.h"
#include "introspect/experiments/store.h"

namespace introspect::experiments {

/// The part of the budget that passes of a graph may take. Where texts are sampled, they are gathered from the graph's
/// caches into batches of their own.
int64_t graph_budget(int64_t memory_budget, bool samples);

/// One protocol: which of its readings are known, which ones graphs are to make, and the result.
class ProtocolRun {
 public:
  ProtocolRun(const graph::ModelPtr& model, const Protocol& protocol, const NamedVectors& vectors,
              const ExperimentOptions& options);

  int64_t done() const { return done_; }
  int64_t total() const { return total_; }
  int64_t n_texts() const { return n_texts_; }
  int64_t n_asks() const;

  static int64_t n_tokens(const Wanted& wanted) {
    return static_cast<int64_t>(wanted.scene->injected.size() + wanted.ask->after.size());
  }
  int64_t missing_tokens() const;
  int64_t missing_texts() const {
    return std::count_if(missing_.begin(), missing_.end(), [](const auto& one) { return one.ask->samples; });
  }
  int64_t new_tokens() const { return protocol_.sampling.max_new_tokens; }
  /// Positions whose logits a reading takes, shared among the reads of the graph that it needs.
  double logits_per_read() const;
  int64_t direction_bytes() const;
  /// Of what an injection that is drawn puts into a graph; 0 for others.
  int64_t drawn_bytes(const Scene& scene, const Injection& injection) const;

  /// Puts into the graph what the injections cannot be planned without.
  void enter_first(graph::Graph& graph);

  /// Between the first graph and the others, where that has run.
  void keep_first();

  /// In place of what the first graph measures: what costs as much, for a plan.
  void stand_in();

  void plan_injections();

  bool is_complete() const { return missing_.empty(); }

  /// Notes in the store what the result will be of, so that it can be put together again from there.
  void note_asked() const;

  /// Puts readings into the graph, as many as its `tokens` leave room for.
  void enter_next(graph::Graph& graph, int64_t& tokens, int64_t most_tokens);

  /// Takes what one pass of the graph has read. `tell` is called as readings are finished.
  void take(const std::vector<std::pair<graph::ReadId, engine::Captured>>& captured,
            const std::function<void()>& tell);

  /// The graph is about to go. What it has not read is missing again.
  void leave();

  bool samples() const { return design_.of_own.samples || design_.of_controls.samples; }

  /// True if blocks of a model stay in its files.
  bool is_streamed() const {
    const auto& other = design_.prefill_model;
    return !model_->keeps_blocks() || (other && !other->keeps_blocks());
  }

  Result collect() const;

 private:
  ExperimentGraph& enter(graph::Graph& graph) {
    return view_.emplace(graph, model_, protocol_, design_, *options_.strength_unit, measured_);
  }

  void count();

  /// Notes a reading, and puts it on the list unless it is known, now or from an earlier run, or stands there.
  void want(const Scene& scene, const Ask& ask, const Injection* injection);

  void keep(std::vector<std::pair<const Wanted*, Reading>> finished);

  Cell make_cell(const Wanted& wanted, std::string value) const;

  /// The identity of what an injection does to a scene.
  std::string added_hash(const Scene& scene, const Injection& injection) const;

  bool find_norms(const Scene& scene);

  /// Control questions that the unsteered model does not answer as the filter asks.
  void filter_controls();

  bool needs_more_first();

  Prompt prompt(const Wanted& wanted, cache::KVCache cache, torch::Tensor resid_D) const;

  /// Throws, before anything runs, for a budget that does not hold the longest question of a scene, and for another
  /// model that does not fit.
  void check_budget();

  const graph::ModelPtr& model_;
  const Protocol& protocol_;
  const ExperimentOptions& options_;
  const Design design_;
  const Origin origin_;
  const CellKeys cell_keys_;
  std::map<std::tuple<const Scene*, const Ask*, const Injection*>, std::string> keys_;  // of every reading
  std::map<std::pair<const Scene*, const Injection*>, std::string> added_;              // added_hash
  std::unordered_map<std::string, Reading> readings_;                                   // by key
  std::unordered_map<std::string, int64_t> n_waiting_;  // key -> how many readings it is
  Measured measured_;
  std::vector<const Scene*> unmeasured_;
  std::vector<Wanted> missing_;          // readings that no graph has been asked for
  std::optional<ExperimentGraph> view_;  // of the graph that runs
  std::set<const Ask*> dropped_;         // control questions
  int64_t done_ = 0, total_ = 0;         // readings
  int64_t n_texts_ = 0;                  // that have been sampled
};

}  // namespace introspect::experiments

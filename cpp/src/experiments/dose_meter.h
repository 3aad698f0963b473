#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/experiments/dose.h"

#include "experiments/design.h"
#include "experiments/experiment_graph.h"

namespace introspect::experiments {

/// One vector, or null of it, over one range.
struct DoseSubject {
  std::string concept_name;
  int64_t first_layer = 0, last_layer = 0;
  int64_t null_index = -1;
  std::vector<Injection>
      injections;  // one, or one for each passage of a localisation; strength: the protocol's factor
  Ids word;        // tokens of the concept's word
};

/// What a piece of a run is of.
struct DosePiece {
  size_t request = 0;
  const Scene* scene = nullptr;
  int64_t ask = -1;  // -1: the injected spans and what stands between them
  int64_t first = 0;
  int64_t size = 0;  // tokens [first, first + size) of scene->injected, or of the ask's
  bool is_injected = false;
};

/// Measures doses of any strengths in one context, whose unsteered run it keeps.
class DoseMeter {
 public:
  /// Runs the unsteered conversations.
  DoseMeter(const std::string& who, graph::ModelPtr model, const DoseContext& context,
            const NamedVectors& vectors, const DoseOptions& options);

  using Request = std::pair<size_t, double>;  // place of a subject, strength

  const std::vector<DoseSubject>& subjects() const { return subjects_; }
  const std::vector<Scene>& scenes() const { return design_.scenes; }
  /// The first subject is of this vector and range and is no null of it.
  size_t vector_of(size_t subject) const;

  /// The options' strengths of every subject.
  std::vector<Request> requests() const;
  double strength(size_t subject, size_t place) const;

  std::vector<Dose> measure(const std::vector<Request>& requests);

  /// Of one block's addition: its length in each unit of Dose, at strength 1. NaN where it is not defined.
  void measure_sizes(size_t subject, double strength, Dose& dose) const;

  /// What is added to each block.
  Directions added(const Scene& scene, const Injection& injection, double strength) const;

  /// One intervention for each block of the range.
  std::vector<hooks::Intervention> interventions(const Scene& scene, const Injection& injection,
                                                 double strength) const;

  /// The unsteered node at the end of a question, and the steered one.
  graph::NodeId end(graph::Graph& graph, const Scene& scene, const Ask& ask) const;
  graph::NodeId end(graph::Graph& graph, const Scene& scene, const Ask& ask, const Injection& injection,
                    double strength) const;

  /// The strength in the chosen unit that adds about one median residual norm: where a search begins.
  double scale(size_t subject) const;

 private:
  struct Sums {
    double sum = 0.0;
    int64_t n = 0;
    void add(double value, int64_t count) { sum += value, n += count; }
    double mean() const { return n == 0 ? Dose::kNone : sum / static_cast<double>(n); }
  };
  struct Tally {
    Sums kl, kl_later, kl_read, leak, leak_base, next, next_base;
  };
  /// Pieces that stand on the same tokens, with their residuals [size, layers, D].
  using Alike = std::vector<std::pair<const DosePiece*, torch::Tensor>>;

  void design_of_protocol(const std::string& who, const Protocol& protocol, const NamedVectors& vectors);
  void design_of_prompts(const std::string& who, const std::vector<Ids>& prompts,
                         const NamedVectors& vectors);
  void find_subjects(const Protocol* protocol);
  void run_base();
  void put(graph::Graph& graph, size_t request, size_t subject, double strength,
           std::map<graph::ReadId, std::vector<DosePiece>>& pieces) const;
  void tally(const Alike& alike, const std::vector<Request>& requests, std::vector<Tally>& tallies) const;
  double factor(const Scene& scene, int64_t layer, const torch::Tensor& direction) const;
  graph::RunOptions run_options() const;
  /// The blocks that a request reads.
  std::vector<int64_t> layers_read(const DoseSubject& subject) const;

  graph::ModelPtr model_;
  DoseOptions options_;
  Design design_;
  std::vector<DoseSubject> subjects_;
  std::map<const Scene*, std::map<int64_t, double>> norms_;  // median, by block
  /// Residuals [tokens, layers of base_layers_, D] of the unsteered run, by scene and ask (-1: the injected tokens).
  std::map<std::pair<const Scene*, int64_t>, torch::Tensor> base_;
  std::vector<int64_t> base_layers_;
  std::map<int64_t, torch::Tensor> natural_;  // by block: float64 [tokens, D], less their mean
};

}  // namespace introspect::experiments

#pragma once

#include <cstdint>
#include <vector>

#include "engine/plan.h"
#include "introspect/graph/graph.h"

namespace introspect::graph {

/// A graph as pieces and captures: a trie of tokens, cut where sequences or their interventions part.
///
/// Cuts are the same for all sequences of equal tokens, whatever is done to them, so that a steered piece and its
/// unsteered twin can share layers.
class Lowering {
 public:
  explicit Lowering(const Graph& graph);

  std::vector<engine::Piece> pieces;
  std::vector<engine::Capture> captures;  // those of read r are of group r

  /// Puts the captures of one reading together.
  engine::Captured gather(ReadId read, std::vector<std::pair<int64_t, engine::Captured>> parts) const;

 private:
  /// One token of one sequence, or a copy of its keys and values.
  struct Token {
    int64_t parent;  // -1: none
    int64_t id;
    int64_t model;     // -1: a copy
    int64_t actions;   // the interventions on it, as one number; 0: none
    int64_t bare;      // what it is without interventions
    int64_t copied;    // token whose keys and values it has; -1: none
    int64_t position;  // as the interventions count
  };

  void add_segment(NodeId node);
  void add_splice(NodeId node);
  /// Whether what is done to it mixes tokens: those may not be cut from one another.
  bool is_solid(const Token& token) const;
  int64_t step(Token token);
  int64_t copy(int64_t parent, int64_t token);
  void cut();
  void add_captures();

  const Graph& graph_;
  std::vector<Token> tokens_;
  std::vector<int64_t> ends_;                              // of each node: its last token
  std::vector<bool> cut_after_;                            // by bare token
  std::vector<int64_t> piece_of_, place_in_;               // of each token
  std::vector<std::vector<hooks::Intervention>> actions_;  // by number
  std::vector<std::vector<int64_t>> action_ids_;

  struct Key {
    int64_t parent, model, id, actions, copied;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };
  std::unordered_map<Key, int64_t, KeyHash> known_, bare_;
  std::unordered_map<std::string, int64_t> action_numbers_, intervention_numbers_;
  std::vector<std::vector<std::pair<int64_t, int64_t>>>
      parts_of_;  // of each read: (capture, position in the read)
};

}  // namespace introspect::graph

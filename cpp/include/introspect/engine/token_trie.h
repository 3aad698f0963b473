#pragma once

#include <cstdint>
#include <vector>

#include "introspect/export.h"

namespace introspect::engine {

/// A set of token sequences as a tree in which equal prefixes are one path.
///
/// Nodes are numbered depth first, so that a node's ancestors come before it, and those of a run of nodes that lie
/// before the run are all on the path from the root to its first node: the tree can be run piece by piece with no more
/// than one path kept.
class INTROSPECT_EXPORT TokenTrie {
 public:
  /// Throws std::invalid_argument for no sequences or an empty one.
  explicit TokenTrie(const std::vector<std::vector<int64_t>>& sequences);

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }

  const std::vector<int64_t>& tokens() const { return tokens_; }
  const std::vector<int64_t>& parents() const { return parents_; }  // -1 for a root
  const std::vector<int64_t>& depths() const {
    return depths_;
  }  // 0 for a root: the position in its sequences

  /// The node of each sequence's last token, in the order given.
  const std::vector<int64_t>& ends() const { return ends_; }

  /// The nodes from the root to `node`, both included. Throws std::out_of_range for a node that is not there.
  std::vector<int64_t> path(int64_t node) const;

 private:
  std::vector<int64_t> tokens_, parents_, depths_, ends_;
};

}  // namespace introspect::engine

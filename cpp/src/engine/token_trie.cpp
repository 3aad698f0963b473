#include "introspect/engine/token_trie.h"

#include <algorithm>
#include <numeric>

#include "introspect/core/check.h"

namespace introspect::engine {

TokenTrie::TokenTrie(const std::vector<std::vector<int64_t>>& sequences) : ends_(sequences.size()) {
  check<std::invalid_argument>(!sequences.empty(), "TokenTrie: at least one sequence is needed, got none");
  // In lexicographic order each sequence shares its longest prefix with the one before.
  std::vector<size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return sequences[a] < sequences[b]; });

  std::vector<int64_t> path;  // nodes of the sequence before
  for (const size_t i : order) {
    const auto& sequence = sequences[i];
    check<std::invalid_argument>(!sequence.empty(), "TokenTrie: sequence ", i, " is empty");
    size_t shared = 0;
    while (shared < path.size() && shared < sequence.size() &&
           tokens_[static_cast<size_t>(path[shared])] == sequence[shared])
      ++shared;
    path.resize(shared);
    for (size_t depth = shared; depth < sequence.size(); ++depth) {
      tokens_.push_back(sequence[depth]);
      parents_.push_back(path.empty() ? -1 : path.back());
      depths_.push_back(static_cast<int64_t>(depth));
      path.push_back(size() - 1);
    }
    ends_[i] = path.back();
  }
}

std::vector<int64_t> TokenTrie::path(int64_t node) const {
  check<std::out_of_range>(node >= 0 && node < size(), "TokenTrie::path: nodes are 0 to ", size() - 1,
                           ", got ", node);
  std::vector<int64_t> nodes;
  for (; node >= 0; node = parents_[static_cast<size_t>(node)]) nodes.push_back(node);
  std::reverse(nodes.begin(), nodes.end());
  return nodes;
}

}  // namespace introspect::engine

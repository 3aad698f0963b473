#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/engine/token_trie.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::engine {

/// What is read of the nodes of a trie.
struct TrieReads {
  std::vector<int64_t>
      nodes;  // in the order of the result's rows, unless `rows` says another; also one twice
  std::vector<int64_t> layers;  // in the order of the result's columns
  hooks::Point point = hooks::Point::kResidPost;
  /// The result's row of each of `nodes`: a row is the mean over its nodes, as of a span. Empty: every node is a row.
  std::vector<int64_t> rows;
  /// Reads the last block's hook_resid_post as the final norm leaves it, which is what transformers calls the last
  /// hidden state.
  bool last_layer_after_norm = false;
};

struct TrieOptions {
  /// Bytes that the activations of one pass and the path kept between passes may take, weights and results aside.
  int64_t memory_budget = int64_t{1} << 30;
  Progress progress;
};

/// How a trie is run under a budget.
struct TriePlan {
  int64_t tokens = 0;  // of all sequences, as running them one by one would take
  int64_t nodes = 0;   // that are run instead
  int64_t nodes_per_pass = 0;
  int64_t n_passes = 0;
};

/// Throws std::invalid_argument if the budget does not hold a pass of one node.
INTROSPECT_EXPORT TriePlan plan_trie(const models::Model& model, const TokenTrie& trie,
                                     const TrieOptions& options = {});

/// Activations at nodes of a trie: every node is run once, whatever sequences it belongs to.
///
/// Nodes go in depth-first order through passes of one size; between passes only the keys and values of the path to
/// the next node are kept, so memory does not grow with the trie. Nothing above the highest layer is run, nor the
/// unembedding. Equal to running each sequence by itself up to rounding.
///
/// Returns float32 (float64 for a float64 model) [rows, layers, ...] on the CPU, where ... is what stands at the
/// point for one position. Throws std::out_of_range for nodes or layers that are not there, HookError for a point that
/// this model does not have in its blocks, std::invalid_argument for scores, patterns, nothing to read, a row without
/// nodes or another point after the norm, ShapeError for a path longer than n_ctx: all before the first pass.
INTROSPECT_EXPORT torch::Tensor run_trie(const models::Model& model, const TokenTrie& trie,
                                         const TrieReads& reads, const TrieOptions& options = {});

}  // namespace introspect::engine

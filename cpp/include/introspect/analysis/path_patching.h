#pragma once

#include <cstdint>
#include <vector>

#include "introspect/analysis/patching.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/graph/graph.h"

namespace introspect::analysis {

/// What writes to the residual stream: the embedding, a head or an MLP.
struct PathSender {
  enum class Kind : uint8_t { embed, head, mlp };

  Kind kind = Kind::head;
  int64_t layer = -1, head = -1;  ///< layer: not of the embedding; head: of heads only
};

/// What reads the residual stream: the queries of a head, the keys or values of a group of heads, an MLP, or the final
/// norm and the unembedding.
struct PathReceiver {
  enum class Kind : uint8_t { q, k, v, mlp, logits };

  Kind kind = Kind::logits;
  int64_t layer = -1, head = -1;  ///< head: of queries; the group of keys and values
};

struct PathPatchingOptions {
  std::vector<std::vector<PathSender>> senders;  ///< each entry is patched by itself; its senders together
  std::vector<std::vector<PathReceiver>> receivers;  ///< likewise; logits stand alone

  /// MLPs keep the patched run's output, so that paths lead through nothing at all; false: they are computed anew, and
  /// paths lead through them too.
  bool freeze_mlps = true;

  std::vector<int64_t> positions;  ///< at which senders are patched; negative: from the end; empty: all
  bool by_position = false;        ///< at one position at a time: an axis of its own

  bool reference_is_to = false;  ///< divergences are from the patched run as it was, not from the other one
  int64_t most_cells = 100'000;  ///< more are an error, which says how long they would take
  int64_t memory_budget = int64_t{1} << 30;  ///< bytes of one pass, weights aside
  Progress progress;                         ///< counts cells
};

/// Path patching: the metric of the run `to` in which receivers read what they would read if senders had written what
/// they write in the run `from`, and nothing between the two had answered.
///
/// Four runs of each cell, as published: A is `from`, B is `to`; C is B with the queries, keys and values of all heads (and
/// all MLPs) held as they are in B and the senders' outputs taken from A, in which the receivers' inputs are read; D is
/// B with these inputs put in, in which the metric is read. Nothing is linearised: norms are computed anew. C needs
/// no attention, and with frozen MLPs no block at all: it is the sender's change through the receiver's norm. D runs
/// from the receivers on, as a graph; for logits it is one readout.
///
/// The values are [pairs, receivers, senders], with by_position [pairs, receivers, senders, positions]. A cell without a
/// path holds PatchGrid::to, exactly.
///
/// Source: Wang et al. 2023, arXiv:2211.00593, section 3.1; Goldowsky-Dill et al. 2023, arXiv:2304.05969.
/// Throws std::invalid_argument for no pairs, senders or receivers, logits beside other receivers, runs of a pair of
/// different lengths, too many cells, or by_position and pairs of different lengths; std::out_of_range for layers, heads and
/// positions that are not there; and as reads_of does: all before the first cell runs.
INTROSPECT_EXPORT PatchGrid path_patching(const graph::ModelPtr& model, const std::vector<PatchPair>& pairs,
                                          const PathPatchingOptions& options);

}  // namespace introspect::analysis

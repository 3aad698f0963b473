#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include <torch/types.h>

#include "introspect/analysis/path_patching.h"
#include "introspect/hooks/hook_point.h"
#include "introspect/models/model.h"

// Run C of path patching: heads are frozen, so that nothing moves between positions and each one is a row by itself.

namespace introspect::analysis {

/// Activations of one run, [layers, T, ...] by point: of the last block only at hook_resid_post, of all blocks elsewhere.
using Recording = std::map<hooks::Point, torch::Tensor>;

/// Senders that are patched together, at some positions.
struct SenderRow {
  std::vector<PathSender> senders;
  std::vector<int64_t> positions;
};

/// What stands at a site in run C at the positions of all rows, one row after another.
struct ReceiverInput {
  torch::Tensor value_E;    // [E, heads, K] of queries, keys and values, [E, D] of others
  torch::Tensor changed_E;  // bool [E] on the CPU: false where the stream is as it was, bit for bit
};

/// The points that runs must be recorded at.
std::vector<hooks::Point> points_to_record(const PathPatchingOptions& options);

/// Inputs in run C, one for each of `sites`, which are kQ, kK, kV, kMlpIn and the last kResidPost, in their order.
///
/// Source of the closed form: a frozen head writes what it wrote, so that a stream changes by what senders, and MLPs that are
/// not frozen, write now less what they wrote.
std::vector<ReceiverInput> receiver_inputs(const models::Model& model, const Recording& to,
                                           const Recording& from, const std::vector<SenderRow>& rows,
                                           const std::vector<hooks::Site>& sites, bool freeze_mlps);

}  // namespace introspect::analysis

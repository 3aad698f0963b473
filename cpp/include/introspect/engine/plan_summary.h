#pragma once

#include <cstdint>
#include <limits>

namespace introspect::engine {

/// What a plan keeps to.
struct PlanOptions {
  /// Bytes that one pass may take, weights aside: residuals, one layer's keys and values, activations, what is kept. They
  /// are those of tensors; glibc's allocator holds some tens of MiB more between them.
  int64_t memory_budget = int64_t{1} << 30;

  /// Of one pass, at its widest: captures are finished pass by pass, and beyond this many nothing gets faster where
  /// weights are in memory.
  int64_t most_rows = 16384;

  /// Of one pass, so that what is read is handed out before long. With such a limit a pass leaves to later ones what they
  /// need of it, as far as the budget has room. A pass holds `least_groups` groups even so.
  int64_t most_token_layers = std::numeric_limits<int64_t>::max();
  int64_t group_token_layers = 0;  ///< what each group of captures costs beside its pass, in token-layers
  int64_t least_groups = 1;
};

/// What a plan costs, against running every captured sequence by itself.
struct PlanSummary {
  int64_t n_pieces = 0, n_captures = 0, n_passes = 0;
  int64_t token_layers_asked = 0;   ///< tokens times layers of the sequences run one by one
  int64_t token_layers_to_run = 0;  ///< that are run instead
  int64_t peak_bytes = 0;           ///< estimate for the largest pass
  int64_t blocks_read = 0;          ///< from the files of models whose blocks stay there, pass by pass
  int64_t bytes_read = 0;           ///< what these blocks take in the files
  double seconds_to_plan = 0;
};

}  // namespace introspect::engine

#pragma once

#include <cstdint>
#include <limits>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include <torch/types.h>

#include "introspect/engine/captured.h"
#include "introspect/engine/plan_summary.h"
#include "introspect/export.h"
#include "introspect/hooks/intervention.h"
#include "introspect/models/model.h"

#include "engine/memory.h"

namespace introspect::engine {

/// Tokens that follow those of another piece, under one set of interventions.
struct Piece {
  int64_t parent = -1;  ///< the piece before it in the sequence, of a smaller number; -1: it begins one
  int64_t model = 0;    ///< its place among the models of the plan

  /// Equal for pieces of the same model and tokens after pieces of equal content: what two pieces have in common where
  /// their interventions differ.
  int64_t content = 0;
  std::vector<int64_t> tokens;

  /// Applied to its tokens, of which the first is at position `offset` as the interventions count.
  std::vector<hooks::Intervention> interventions;
  std::vector<int64_t> intervention_ids;  ///< equal ids: the same effect on pieces of equal content
  int64_t offset = 0;

  /// Instead of tokens to run: as many keys and values of this piece, of a smaller number, from a token on; -1: none.
  int64_t copied = -1;
  int64_t copied_first = 0;
};

/// An activation of a piece that one of its interventions reads at one height and uses at the same or a later one.
struct SourceRead {
  hooks::Site site;
  int64_t read_height = 0, used_height = 0;
};

/// What is kept of a piece.
struct Capture : Read {
  int64_t piece = 0;
  int64_t group = 0;  ///< captures of one group are made in the same pass; ascending
};

/// A piece at one height of one pass: it stands for all that equal it up to there.
struct Slot {
  int64_t piece = 0;
  int64_t parent = -1;        ///< the slot before it in the sequence, at the same height
  int64_t source = -1;        ///< the slot of the height below that it goes on from
  int64_t copied = -1;        ///< the slot whose keys and values it has
  bool runs = false;          ///< through the block at this height
  bool carried = false;       ///< ran in an earlier pass, which left its keys and what goes on from it
  std::vector<int64_t> rows;  ///< of the piece's tokens that are needed; empty: all
  int64_t n_rows = 0;
  int64_t first_row = 0;  ///< of the height's residual [rows, D]
  int64_t first_key = 0;  ///< of the block's keys; slots that run, copy or are carried have them
};

/// What a pass leaves to later ones of a unit at one height: its keys, and the block's output for some of its tokens.
struct Left {
  int32_t unit = 0;
  int64_t piece = 0;          ///< it stands for all that equal it up to there
  bool all = false;           ///< the output of all tokens, or of `rows`
  std::vector<int64_t> rows;  ///< ascending
};

/// What passes have to do with one another at one height.
struct Exchange {
  std::unordered_set<int32_t> taken;  ///< units that earlier passes left and this one has
  std::vector<Left> left;             ///< of this pass
  std::vector<int32_t> dropped;       ///< that no later pass has, or that there is no room for any more
};

/// All slots before one block (height 0 to n_layers - 1), or after the last one.
struct Height {
  std::vector<Slot> slots;  ///< in the order in which they run; those that only wait to be read stand last
  int64_t n_rows = 0, n_keys = 0;
  std::unordered_map<int32_t, int64_t> slot_of_unit;
};

/// Which work there is, once each, and in which passes it goes.
///
/// Pieces with the same tokens have a layer in common until their interventions, or those of pieces before them, first
/// make a difference: at every height only what differs is a slot of its own. Nothing runs above what is captured, the
/// highest layer runs for the captured positions only, and captures are shared out among passes that stay within the
/// budget; what two passes need is run in both, unless passes are short (PlanOptions::most_token_layers).
class INTROSPECT_EXPORT Plan {
 public:
  /// Models have equal numbers of layers and equal keys. Throws std::invalid_argument, naming the capture's group, if the
  /// budget does not hold what it needs.
  Plan(std::vector<Piece> pieces, std::vector<Capture> captures, const models::Config& cfg,
       torch::ScalarType dtype, torch::Device device, const PlanOptions& options = {});

  const std::vector<Piece>& pieces() const { return pieces_; }
  const std::vector<Capture>& captures() const { return captures_; }
  const PlanSummary& summary() const { return summary_; }

  int64_t n_layers() const { return n_layers_; }
  int64_t depth(int64_t piece) const { return depths_[static_cast<size_t>(piece)]; }  ///< of its first token
  int64_t rows_per_chunk() const { return rows_per_chunk_; }
  int32_t unit_of(int64_t height, int64_t piece) const {  ///< equal for what is one there
    return unit_of_[static_cast<size_t>(height)][static_cast<size_t>(piece)];
  }
  int64_t widest() const { return widest_; }  ///< most rows that a height of any pass has

  /// What a piece's interventions read outside of the block that they change.
  const std::vector<SourceRead>& sources(int64_t piece) const { return sources_[static_cast<size_t>(piece)]; }

  /// The pieces of a pass: those of its captures, and what these go on from.
  std::vector<int64_t> pieces_of(int64_t pass) const {
    return with_ancestors(passes_[static_cast<size_t>(pass)]);
  }

  /// The captures of each pass, as indices.
  const std::vector<std::vector<int64_t>>& passes() const { return passes_; }

  const Exchange& exchange(int64_t pass, int64_t height) const;

  /// In how many passes each block of each of the models runs: [model][layer].
  std::vector<std::vector<int64_t>> block_runs(size_t n_models) const;  // plan_passes.cpp

  /// The slots of a pass, height by height (n_layers + 1 of them).
  std::vector<Height> heights(int64_t pass) const;

  /// The slot of a piece at a height of `heights`; -1: none.
  int64_t slot_of(const std::vector<Height>& heights, int64_t height, int64_t piece) const;

 private:
  void find_sources(const models::Config& cfg, int64_t element);
  void find_tops();
  void find_units();
  void find_passes(const PlanOptions& options);  // plan_passes.cpp
  void widen_products(int64_t memory_budget);
  void find_carried(int64_t memory_budget);  // plan_carried.cpp
  friend class Packing;
  friend class Carrying;
  std::vector<int64_t> depth_first() const;
  std::vector<int64_t> with_ancestors(const std::vector<int64_t>& captures) const;
  bool present(int64_t piece, int64_t height) const;
  int64_t kept_bytes(const Capture& capture) const;
  std::vector<int64_t> rows_read(int64_t piece, int64_t height) const;

  std::vector<Piece> pieces_;
  std::vector<Capture> captures_;
  int64_t n_layers_ = 0;
  TokenBytes bytes_;
  int64_t row_bytes_ = 0;  // of one row of a pass, at its widest height
  int64_t rows_per_chunk_ = 1, widest_ = 0;
  std::vector<int64_t> depths_, stages_;
  std::vector<std::vector<SourceRead>> sources_;   // by piece
  std::vector<int64_t> source_bytes_;              // by piece
  std::vector<int64_t> tops_;                      // the last block that a piece takes part in
  std::vector<int64_t> outputs_;                   // the last block whose output is read there
  std::vector<std::vector<int32_t>> unit_of_;      // [height][piece]
  std::vector<int64_t> n_units_;                   // by height: what is equal there is one
  std::vector<std::vector<int64_t>> captures_of_;  // by piece
  std::vector<std::vector<int64_t>> passes_;
  std::vector<int64_t> pass_bytes_;               // without what is carried
  std::vector<std::vector<Exchange>> exchanges_;  // [pass][height]
  PlanSummary summary_;
};

/// The height at which an intervention first acts on the residual, or on the block that stands there: embedding and
/// hook_resid_pre of block l at their own height, hook_resid_post of l at l + 1, everything else of block l at l.
INTROSPECT_EXPORT int64_t acting_height(hooks::Point point, int64_t layer);

/// True if an intervention there changes the residual between blocks, and not what is within one.
INTROSPECT_EXPORT bool between_blocks(hooks::Point point);

}  // namespace introspect::engine

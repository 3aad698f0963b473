#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/hook_point.h"
#include "introspect/hooks/operands.h"
#include "introspect/hooks/operators.h"
#include "introspect/hooks/stash.h"
#include "introspect/hooks/text_filter.h"

namespace introspect::hooks {

/// A change to activations, as data: the operator `op` is applied to a selection of rows, positions and heads at
/// `point` of each of the layers in `values`.
///
/// With x the activation, v the layer's operand "v" and s the strength, the operators are
///
///     add          x + s v                      replace      v             (s must be 1)
///     ablate       x - s (x.u) u, u = v / |v|   zero         0             (s must be 1)
///     project_out  x - s (x Q) Q^T, Q an        mean         v, or the mean of x over the selected positions
///                  orthonormal basis of v's rows             (s must be 1)
///     interpolate  (1 - s) x + s v              scale        s x
///
/// A strength of 0 (of 1 for scale), or a selection that the pass does not touch, leaves the pass as it was, bit for
/// bit. The mean of x needs every selected position in one pass, never part of it in the KV cache. A zero direction
/// has nothing to ablate. project_out wants independent rows.
///
/// Shapes of v, with W the size of the activation's last dimension (of scores and patterns: its keys, counted from
/// the start of the KV cache; keys after the pass's last are cut off), N the number of selected rows or 1, h the
/// number of selected heads, and P positions counted from the start of the sequence, as stored from a hook point:
///
///     points without heads    [W]    [N, W]                 [N, P, W]
///     points with heads       [W]    [h, W]    [N, h, W]    [N, P, h, W]
///     scores and patterns     [W]    [h, W]    [N, h, W]    [N, h, P, W]
///     project_out             [W]    [k, W]    the same for all rows and heads
///
/// Operators that others register may take operands of other names, and read a second point: `source`, the activation
/// as it goes on from there, of the same rows and positions, in the layer that is changed or in `source_layer` below. A
/// transcoder reads hook_mlp_in and writes hook_mlp_out; a cross-layer one reads below and writes above.
///
/// Replacing a pattern or a norm's scale by what was stored freezes it. Gradients flow to x, to the source and to the
/// operands. An intervention names no model, so it can be stored, hashed and applied without Python.
struct Intervention {
  std::string op = "add";
  Point point = Point::kResidPost;

  /// Layer -> operands, none for operators without; layer -1 for the points that stand once in a model.
  std::map<int64_t, Operands> values;

  double strength = 1.0;
  Parameters parameters;  // of operators that take some

  /// Positions [first, last) of the sequence that are changed, counted from the start of the KV cache and, in a
  /// padded batch, with the padding (see TextFilter::skip_padding). The defaults are every position, generated ones
  /// too. Positions of patterns are those of their queries.
  int64_t first_position = 0;
  int64_t last_position = std::numeric_limits<int64_t>::max();

  /// These instead of the range, unless empty; counted alike.
  std::vector<int64_t> positions;

  std::vector<int64_t> heads;  // empty: all; groups at points of keys and values
  std::vector<int64_t> rows;   // of the batch; empty: all
  TextFilter text;             // of these positions, only those at which such text stands

  std::optional<Point> source;          // of operators that read one; not scores or patterns
  std::optional<int64_t> source_layer;  // none: the layer that is changed
};

/// Where what is changed at `layer` is read from, for an intervention with a source.
INTROSPECT_EXPORT Site source_site(const Intervention& intervention, int64_t layer);

/// `x`, the activation at the intervention's point of `layer`, whose first position is number `offset` of its
/// sequence, after the intervention; `x` itself where nothing is to be changed. `text`, of which the pass is the end,
/// is for interventions with a text filter, and `stash` holds the activations of the same pass at their sources.
///
/// Throws ShapeError if the operand does not fit x, std::out_of_range for rows that x does not have, and HookError if
/// the text is not known well enough or a source is not there.
INTROSPECT_EXPORT torch::Tensor apply(const Intervention& intervention, int64_t layer, const torch::Tensor& x,
                                      int64_t offset, const Text* text = nullptr,
                                      const Stash* stash = nullptr);

/// The intervention on the whole of a text that is known, tokens included, without a text filter: one intervention for
/// each choice of positions that several rows share, and none for rows in which it changes nothing.
///
/// Throws HookError if the text is not known well enough, std::out_of_range for rows that it does not have.
INTROSPECT_EXPORT std::vector<Intervention> resolve(const Intervention& intervention, const Text& text);

/// The intervention for those of its rows that are among `rows`, with their operands; nothing if none is.
///
/// Throws std::out_of_range for rows that an operand with one entry a row does not have.
INTROSPECT_EXPORT std::optional<Intervention> restrict_rows(const Intervention& intervention,
                                                            const std::vector<int64_t>& rows);

/// True if nothing is changed, whatever it is applied to: its strength is that of the operator's identity.
INTROSPECT_EXPORT bool is_identity(const Intervention& intervention);

/// Throws what makes an intervention unfit for a model before anything runs: ConfigError for an unknown operator,
/// HookError for a point or source that the model does not have, or a source that does not come before its point,
/// std::out_of_range for layers, positions, heads or rows, ShapeError for operands, and std::invalid_argument for an
/// operand or source that is missing or not wanted, values that are not finite (stored scores may be -infinity), a
/// strength or parameters that the operator does not take, and tokens of a text filter that do not ascend.
INTROSPECT_EXPORT void validate(const Intervention& intervention, const HookPoints& points);

/// Where an intervention begins to matter.
struct FirstChange {
  int64_t layer;     // -1 before the first block; the largest int64 after the last one
  int64_t position;  // of the sequence
  bool operator==(const FirstChange&) const = default;
};

/// The first layer and position that an intervention can change; nothing if it changes none.
INTROSPECT_EXPORT std::optional<FirstChange> first_change(const Intervention& intervention);

}  // namespace introspect::hooks

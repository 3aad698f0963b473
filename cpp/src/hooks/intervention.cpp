#include "introspect/hooks/intervention.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "hooks/selection.h"
#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

constexpr int64_t kOpen = std::numeric_limits<int64_t>::max();

/// The rank of an operand that is stored as the point shows it: [N, P, W] or [N, P, h, W].
int64_t stored_rank(Point point) {
  return head_axis(point) ? 4 : 3;
}

/// The layer's operand, made to broadcast against the selection `x` of the activation: [n, t, W] or [n, t, h, W].
torch::Tensor aligned(const Intervention& i, const torch::Tensor& operand, const Selection& selection,
                      const torch::Tensor& x) {
  const int64_t W = x.size(-1);
  const bool counts_keys = position_axis(i.point) == 2;
  check<ShapeError>(counts_keys ? operand.size(-1) >= W : operand.size(-1) == W,
                    "intervention: the last dimension at ", point_name(i.point), " is ", W,
                    " here, that of the operand is ", operand.size(-1));
  auto out = counts_keys ? operand.narrow(-1, 0, W) : operand;
  if (out.dim() == stored_rank(i.point)) {
    if (counts_keys) out = out.transpose(1, 2);
    out = selection.take_absolute(out, 1);
  } else if (out.dim() == stored_rank(i.point) - 1) {
    out = out.unsqueeze(1);
  }
  // What is left to fit: the number of rows, and of heads.
  for (int64_t axis = 2; axis <= out.dim(); ++axis) {
    const int64_t size = out.size(-axis), wanted = x.size(-axis);
    const bool is_rows = axis == x.dim();
    const bool is_positions = axis == x.dim() - 1;
    check<ShapeError>(size == wanted || ((is_rows || is_positions) && size == 1),
                      "intervention: the operand ", operand.sizes(), " is for ", size,
                      is_rows ? " rows" : " heads", ", but ", wanted, " are selected at ",
                      point_name(i.point));
  }
  return out;
}

void check_indices(const std::vector<int64_t>& indices, int64_t n, const char* what) {
  std::set<int64_t> seen;
  for (const int64_t index : indices) {
    check<std::out_of_range>(index >= 0 && index < n, "intervention: ", what,
                             n == kOpen ? " must not be negative" : concat(" must be 0 to ", n - 1), ", got ",
                             index);
    check<std::invalid_argument>(seen.insert(index).second, "intervention: ", what, " must differ, got ",
                                 index, " twice");
  }
}

void check_shape(const Intervention& i, const torch::Tensor& operand, const HookPoints& points) {
  const auto width = points.width(i.point);
  const auto n_heads = points.heads(i.point);
  const int64_t h = i.heads.empty() ? n_heads.value_or(0) : static_cast<int64_t>(i.heads.size());
  const auto n_rows = static_cast<int64_t>(i.rows.size());
  const int64_t rank = stored_rank(i.point);
  bool fits = operand.dim() >= 1 && operand.dim() <= rank && operand.numel() > 0 &&
              operand.size(-1) == width.value_or(operand.size(-1));
  if (fits && operand.dim() >= rank - 1 && n_rows > 0)
    fits = operand.size(0) == n_rows || operand.size(0) == 1;
  if (fits && n_heads && operand.dim() > 1) {
    const int64_t axis = operand.dim() == 4 && position_axis(i.point) == 1 ? 2 : operand.dim() == 2 ? 0 : 1;
    fits = operand.size(axis) == h;
  }
  if (fits) return;
  const std::string W = width ? std::to_string(*width) : "keys";
  const std::string N = n_rows > 0 ? std::to_string(n_rows) + " or 1" : "batch or 1";
  throw ShapeError(n_heads
                       ? concat("intervention: an operand at ", point_name(i.point), " must be [", W, "], [",
                                h, ", ", W, "], [", N, ", ", h, ", ", W, "] or [", N, ", ",
                                position_axis(i.point) == 1 ? concat("pos, ", h) : concat(h, ", pos"), ", ",
                                W, "], got ", operand.sizes())
                       : concat("intervention: an operand at ", point_name(i.point), " must be [", W, "], [",
                                N, ", ", W, "] or [", N, ", pos, ", W, "], got ", operand.sizes()));
}

void check_operand(const Intervention& i, const Operator& op, int64_t layer, const torch::Tensor& operand,
                   const HookPoints& points) {
  check<std::invalid_argument>(operand.defined() || op.operand != Operator::Operand::kRequired,
                               "intervention: '", i.op, "' needs an operand, and layer ", layer, " has none");
  if (!operand.defined()) return;
  check<std::invalid_argument>(op.operand != Operator::Operand::kNone, "intervention: '", i.op,
                               "' takes no operand, but layer ", layer, " has one of ", operand.sizes());
  check<ShapeError>(operand.is_floating_point(), "intervention: the operand of layer ", layer,
                    " must be of a floating dtype, got ", operand.scalar_type());
  if (op.check_operand)
    op.check_operand(operand, points.width(i.point));
  else
    check_shape(i, operand, points);
  // Masked scores are -infinity.
  const auto wrong = i.point == Point::kAttnScores ? at::isnan(operand).logical_or(at::isposinf(operand))
                                                   : at::isfinite(operand).logical_not();
  check<std::invalid_argument>(!wrong.any().item<bool>(), "intervention: the operand of layer ", layer,
                               " holds NaN or infinity");
}

}  // namespace

torch::Tensor apply(const Intervention& i, int64_t layer, const torch::Tensor& x, int64_t offset) {
  const auto found = i.values.find(layer);
  const Operator& op = find_operator(i.op);
  if (found == i.values.end() || i.strength == op.identity) return x;
  const auto selection = Selection::of(i, x, offset);
  if (!selection) return x;
  auto operand = found->second;
  check<HookError>(!op.mixes_positions || operand.defined() || selection->begins_here(), "intervention: '",
                   i.op, "' without an operand needs all its positions in one pass, but those before ",
                   offset, " are in the cache; give it an operand, or a last position");
  const auto chosen = selection->take(x);
  if (operand.defined()) {
    operand = operand.to(x.device());
    if (!op.check_operand) operand = aligned(i, operand, *selection, chosen);
  }
  auto values = op.apply(chosen, operand, i.strength);
  if (operand.defined() && values.is_alias_of(operand)) values = values.clone(at::MemoryFormat::Contiguous);
  return selection->put(x, values);
}

bool is_identity(const Intervention& i) {
  return i.values.empty() || i.strength == find_operator(i.op).identity;
}

void validate(const Intervention& i, const HookPoints& points) {
  const Operator& op = find_operator(i.op);
  check<HookError>(points.points.test(static_cast<size_t>(i.point)), "intervention: this model has no ",
                   point_name(i.point));
  check<std::invalid_argument>(std::isfinite(i.strength), "intervention: the strength must be finite, got ",
                               i.strength);
  check<std::invalid_argument>(op.takes_strength || i.strength == 1 || i.strength == op.identity,
                               "intervention: '", i.op, "' has no strength but 1 (0 is none at all), got ",
                               i.strength);
  check<std::out_of_range>(i.first_position >= 0, "intervention: positions must not be negative, got ",
                           i.first_position);
  check<std::invalid_argument>(i.last_position >= i.first_position,
                               "intervention: the last position must not be before the first, ",
                               i.first_position, ", got ", i.last_position);
  check_indices(i.positions, kOpen, "positions");
  check_indices(i.rows, kOpen, "rows of the batch");
  const auto n_heads = points.heads(i.point);
  check<std::invalid_argument>(i.heads.empty() || n_heads.has_value(), "intervention: ", point_name(i.point),
                               " has no heads to choose among");
  if (n_heads) check_indices(i.heads, *n_heads, "heads");
  const bool in_block = static_cast<int>(i.point) < kBlockPoints;
  for (const auto& [layer, operand] : i.values) {
    check<std::out_of_range>(points.has({i.point, layer}), "intervention: layers of ", point_name(i.point),
                             " must be ", in_block ? concat("0 to ", points.n_layers - 1) : "-1", ", got ",
                             layer);
    check_operand(i, op, layer, operand, points);
  }
}

std::optional<FirstChange> first_change(const Intervention& i) {
  if (is_identity(i)) return std::nullopt;
  const bool listed = !i.positions.empty();
  if (!listed && i.first_position >= i.last_position) return std::nullopt;
  const int64_t position = listed ? *std::min_element(i.positions.begin(), i.positions.end())
                                  : std::max<int64_t>(i.first_position, 0);
  if (static_cast<int>(i.point) < kBlockPoints) return FirstChange{i.values.begin()->first, position};
  const bool before_blocks = i.point == Point::kEmbed || i.point == Point::kPosEmbed;
  return FirstChange{before_blocks ? -1 : kOpen, position};
}

}  // namespace introspect::hooks

#include "introspect/hooks/intervention.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "core/dense.h"
#include "core/on_device.h"
#include "hooks/selection.h"
#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

constexpr int64_t kOpen = std::numeric_limits<int64_t>::max();

/// The rank of an operand that is stored as the point shows it: [N, P, W] or [N, P, h, W].
int64_t stored_rank(Point point) {
  return head_axis(point) ? 4 : 3;
}

/// The operand "v", made to broadcast against the selection `x` of the activation: [n, t, W] or [n, t, h, W].
Operands aligned(const Intervention& i, const torch::Tensor& operand, const Selection& selection,
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

bool is_alias_of_any(const torch::Tensor& values, const Operands& operands) {
  return std::any_of(operands.begin(), operands.end(),
                     [&](const auto& named) { return values.is_alias_of(named.second); });
}

/// What the operator makes of a selection of x, for operands on its device. `source`: the activation at the
/// intervention's source, undefined where it has none.
torch::Tensor changed(const Intervention& i, const Operator& op, const Operands& operands,
                      const torch::Tensor& source, const Selection& selection, const torch::Tensor& x) {
  check<HookError>(!op.mixes_positions || !operands.empty() || selection.begins_here(), "intervention: '",
                   i.op,
                   "' without an operand needs all its positions in one pass, but those of the cache are not "
                   "in this one; give it an operand, or a last position");
  const auto taken = selection.take(x);
  const bool aligns = !operands.empty() && !op.check_operands;
  const auto parameters = op.parameters.empty() ? i.parameters : complete_parameters(i.op, op, i.parameters);
  auto values = op.apply({.x = taken,
                          .operands = aligns ? aligned(i, operands.v(), selection, taken) : operands,
                          .source = source.defined() ? selection.take_source(source) : source,
                          .strength = i.strength,
                          .parameters = parameters});
  check_dense<HookError>(values, "intervention: what '", i.op, "' returns");
  check<HookError>(
      values.sizes() == taken.sizes() && values.device() == taken.device() && !values.is_complex(),
      "intervention: '", i.op, "' must return a tensor of shape ", taken.sizes(), " on ", taken.device(),
      " as it was given, got ", values.sizes(), " ", values.scalar_type(), " on ", values.device());
  const bool is_shared =
      is_alias_of_any(values, operands) || (source.defined() && values.is_alias_of(source));
  return is_shared ? values.clone(at::MemoryFormat::Contiguous) : values;
}

/// Places of equal lists, by list; those of the empty list are left out.
std::map<std::vector<int64_t>, std::vector<int64_t>> grouped(std::vector<std::vector<int64_t>> lists) {
  std::map<std::vector<int64_t>, std::vector<int64_t>> out;
  for (size_t place = 0; place < lists.size(); ++place)
    if (!lists[place].empty()) out[std::move(lists[place])].push_back(static_cast<int64_t>(place));
  return out;
}

std::vector<int64_t> chosen(const std::vector<int64_t>& all, const std::vector<int64_t>& places) {
  std::vector<int64_t> out;
  out.reserve(places.size());
  for (const int64_t place : places) out.push_back(all[static_cast<size_t>(place)]);
  return out;
}

/// True if the operands have one entry a row, and several.
bool is_by_row(const Intervention& i, const Operator& op, const Operands& operands) {
  return !operands.empty() && !op.check_operands && operands.v().dim() >= stored_rank(i.point) - 1 &&
         operands.v().size(0) > 1;
}

/// Of operands that may have one entry for each of the intervention's `n` rows, those at `places` among them.
Operands operands_of_rows(const Intervention& i, const Operator& op, const Operands& operands, size_t n,
                          const std::vector<int64_t>& places) {
  if (!is_by_row(i, op, operands)) return operands;
  const auto& operand = operands.v();
  check<ShapeError>(operand.size(0) == static_cast<int64_t>(n), "intervention: the operand ", operand.sizes(),
                    " is for ", operand.size(0), " rows, but ", n, " are selected at ", point_name(i.point));
  if (places.size() == n) return operands;
  return operand.index_select(0, on_device(places, operand.device()));
}

void check_tokens(const std::vector<int64_t>& tokens) {
  const bool ascending =
      std::adjacent_find(tokens.begin(), tokens.end(), std::greater_equal<>()) == tokens.end();
  check<std::invalid_argument>(ascending && (tokens.empty() || tokens.front() >= 0),
                               "intervention: the tokens of a text filter must ascend from 0 or more");
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

void check_names(const Intervention& i, const Operator& op, int64_t layer, const Operands& operands) {
  const auto called = [&](const std::string& name) {
    return name == "v" ? std::string("an operand") : "an operand " + name;
  };
  for (const auto& [name, need] : op.operands)
    check<std::invalid_argument>(operands.contains(name) || need != Operator::Need::kRequired,
                                 "intervention: '", i.op, "' needs ", called(name), ", and layer ", layer,
                                 " has none");
  for (const auto& [name, tensor] : operands)
    check<std::invalid_argument>(op.operands.contains(name), "intervention: '", i.op, "' takes no operand",
                                 op.operands.empty() ? "" : concat(" ", name), ", but layer ", layer,
                                 " has one of ", tensor.sizes());
}

void check_operands(const Intervention& i, const Operator& op, int64_t layer, const Operands& operands,
                    const HookPoints& points) {
  const auto who = [&](const std::string& name) {
    return concat("intervention: the operand ", name == "v" ? "" : name + " ", "of layer ", layer);
  };
  for (const auto& [name, tensor] : operands) check_dense<ShapeError>(tensor, who(name));
  check_names(i, op, layer, operands);
  // An operator that checks its operands may take indices.
  for (const auto& [name, tensor] : operands)
    check<ShapeError>(
        tensor.is_floating_point() || (op.check_operands && tensor.scalar_type() == torch::kLong), who(name),
        " must be of a floating dtype, got ", tensor.scalar_type());
  if (operands.empty()) return;
  if (op.check_operands)
    op.check_operands(operands, {points.width(i.point), i.source ? points.width(*i.source) : std::nullopt});
  else
    check_shape(i, operands.v(), points);
  for (const auto& [name, tensor] : operands) {
    // Masked scores are -infinity.
    const auto wrong = i.point == Point::kAttnScores ? at::isnan(tensor).logical_or(at::isposinf(tensor))
                                                     : at::isfinite(tensor).logical_not();
    check<std::invalid_argument>(!wrong.any().item<bool>(), who(name), " holds NaN or infinity");
  }
}

/// Where a site comes in a forward pass.
std::pair<int64_t, Point> place_in_pass(Site site) {
  if (static_cast<int>(site.point) < kBlockPoints) return {site.layer, site.point};
  const bool before_blocks = site.point == Point::kEmbed || site.point == Point::kPosEmbed;
  return {before_blocks ? -1 : kOpen, site.point};
}

void check_source(const Intervention& i, const Operator& op) {
  check<std::invalid_argument>(i.source || !op.reads_source, "intervention: '", i.op,
                               "' needs a source, a point that it reads");
  check<std::invalid_argument>(!i.source || op.reads_source, "intervention: '", i.op,
                               "' reads no source, got ", i.source ? point_name(*i.source) : "");
  check<std::invalid_argument>(i.source || !i.source_layer, "intervention: a layer of the source, ",
                               i.source_layer.value_or(0), ", is of no use without a source");
  check<HookError>(!i.source || position_axis(*i.source) == 1,
                   "intervention: scores and patterns cannot be a source, got ",
                   i.source ? point_name(*i.source) : "");
}

void check_source_comes_first(const Intervention& i, int64_t layer, const HookPoints& points) {
  const auto from = source_site(i, layer);
  check<HookError>(points.has(from), "intervention: the source must be a point of this model, got ",
                   point_name(from.point), " of layer ", from.layer);
  check<HookError>(place_in_pass(from) < place_in_pass({i.point, layer}), "intervention: the source ",
                   hook_name(from), " must come before what it changes, ", hook_name({i.point, layer}));
}

}  // namespace

Site source_site(const Intervention& i, int64_t layer) {
  const bool in_block = static_cast<int>(i.source.value()) < kBlockPoints;
  return {*i.source, in_block ? i.source_layer.value_or(layer) : -1};
}

torch::Tensor apply(const Intervention& i, int64_t layer, const torch::Tensor& x, int64_t offset,
                    const Text* text, const Stash* stash) {
  const auto found = i.values.find(layer);
  const Operator& op = find_operator(i.op);
  if (found == i.values.end() || i.strength == op.identity) return x;
  const auto operands = found->second.to(x.device());
  torch::Tensor source;
  if (i.source) {
    check<HookError>(stash != nullptr, "intervention: the activation at ", hook_name(source_site(i, layer)),
                     " is needed, and nothing of this pass is stored");
    source = stash->at(source_site(i, layer)).to(x.device());
  }
  if (lets_all_through(i.text, text)) {
    const auto selection = Selection::of(i, x, offset);
    return selection ? selection->put(x, changed(i, op, operands, source, *selection, x)) : x;
  }
  const auto rows = selected_rows(i, x.size(0));
  const auto groups = grouped(filtered_positions(i, rows, text, offset, x.size(position_axis(i.point))));
  torch::Tensor out = x;
  for (const auto& [positions, places] : groups) {
    const auto selection = Selection::at(i, x, offset, chosen(rows, places), positions);
    const auto values =
        changed(i, op, operands_of_rows(i, op, operands, rows.size(), places), source, selection, x);
    if (groups.size() == 1) return selection.put(x, values);
    if (out.is_same(x)) out = x.clone(at::MemoryFormat::Contiguous);
    selection.write(out, values);
  }
  return out;
}

std::vector<Intervention> resolve(const Intervention& i, const Text& text) {
  if (lets_all_through(i.text, &text)) {
    auto same = i;
    same.text = {};
    return {same};
  }
  const auto& known = text.real_BS.defined() ? text.real_BS : text.tokens_BS;
  check<HookError>(known.defined(), "resolve: the tokens of the text must be known, or its padding");
  const auto rows = selected_rows(i, known.size(0));
  std::vector<Intervention> out;
  for (const auto& [positions, places] : grouped(filtered_positions(i, rows, &text, 0, known.size(1)))) {
    auto& one = out.emplace_back(i);
    one.text = {};
    one.first_position = 0;
    one.last_position = kOpen;
    one.positions = positions;
    one.rows = chosen(rows, places);
    for (auto& [layer, operands] : one.values)
      operands = operands_of_rows(i, find_operator(i.op), operands, rows.size(), places);
  }
  return out;
}

std::optional<Intervention> restrict_rows(const Intervention& i, const std::vector<int64_t>& rows) {
  std::vector<int64_t> places = rows;
  if (!i.rows.empty()) {
    places.clear();
    for (size_t place = 0; place < i.rows.size(); ++place)
      if (std::find(rows.begin(), rows.end(), i.rows[place]) != rows.end())
        places.push_back(static_cast<int64_t>(place));
  }
  if (places.empty()) return std::nullopt;
  auto out = i;
  out.rows = i.rows.empty() ? rows : chosen(i.rows, places);
  for (auto& [layer, operands] : out.values) {
    if (!is_by_row(i, find_operator(i.op), operands)) continue;
    const auto& operand = operands.v();
    const int64_t last = *std::max_element(places.begin(), places.end());
    check<std::out_of_range>(last < operand.size(0), "intervention: rows must be 0 to ", operand.size(0) - 1,
                             ", got ", last);
    operands = operand.index_select(0, on_device(places, operand.device()));
  }
  return out;
}

bool is_identity(const Intervention& i) {
  return i.values.empty() || i.strength == find_operator(i.op).identity;
}

void validate(const Intervention& i, const HookPoints& points) {
  const Operator& op = find_operator(i.op);
  check<HookError>(points.points.test(static_cast<size_t>(i.point)), "intervention: this model has no ",
                   point_name(i.point));
  check<HookError>(
      !is_discrete(i.point) && !(i.source && is_discrete(*i.source)), "intervention: ", point_name(i.point),
      " holds the numbers of experts, which a callback can change; interventions work on real numbers");
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
  const auto parameters = complete_parameters(i.op, op, i.parameters);
  if (op.check_parameters) op.check_parameters(parameters);
  check_source(i, op);
  check_tokens(i.text.tokens);
  check_tokens(i.text.not_tokens);
  check_tokens(i.text.after);
  check_indices(i.positions, kOpen, "positions");
  check_indices(i.rows, kOpen, "rows of the batch");
  const auto n_heads = points.heads(i.point);
  check<std::invalid_argument>(i.heads.empty() || n_heads.has_value(), "intervention: ", point_name(i.point),
                               " has no heads to choose among");
  if (n_heads) check_indices(i.heads, *n_heads, "heads");
  const bool in_block = static_cast<int>(i.point) < kBlockPoints;
  for (const auto& [layer, operands] : i.values) {
    check<std::out_of_range>(points.has({i.point, layer}), "intervention: layers of ", point_name(i.point),
                             " must be ", in_block ? concat("0 to ", points.n_layers - 1) : "-1", ", got ",
                             layer);
    if (i.source) check_source_comes_first(i, layer, points);
    check_operands(i, op, layer, operands, points);
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

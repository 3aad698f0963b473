#include "models/decode_hooks.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "introspect/core/check.h"
#include "introspect/models/place_operands.h"

namespace introspect::models {

namespace {

using hooks::Intervention;

constexpr int64_t kOpen = std::numeric_limits<int64_t>::max();

enum class Acts { kNever, kAlways, kSometimes };

/// At the new positions. An intervention that skips padding counts real tokens, of which a row may have fewer.
Acts acts(const Intervention& i, const NewPositions& positions) {
  if (i.text.phase == hooks::Phase::kPrompt) return Acts::kNever;
  const int64_t first = i.text.skip_padding ? positions.first_real : positions.first;
  const int64_t last = positions.first + positions.n;
  if (!i.positions.empty()) {
    const auto is_new = [&](int64_t position) { return position >= first && position < last; };
    return std::ranges::any_of(i.positions, is_new) ? Acts::kSometimes : Acts::kNever;
  }
  if (i.last_position <= first || i.first_position >= last) return Acts::kNever;
  return i.first_position <= first && i.last_position >= last ? Acts::kAlways : Acts::kSometimes;
}

bool is_range(const std::vector<int64_t>& list) {
  const auto is_gap = [](int64_t a, int64_t b) { return b != a + 1; };
  return std::adjacent_find(list.begin(), list.end(), is_gap) == list.end();
}

bool depends_on_tokens(hooks::TextFilter filter) {
  filter.phase = hooks::Phase::kAll;
  filter.skip_padding = false;
  return !filter.empty();
}

bool is_behind_blocks(hooks::Point point) {
  const bool in_front = point == hooks::Point::kEmbed || point == hooks::Point::kPosEmbed;
  return static_cast<int>(point) >= hooks::kBlockPoints && !in_front;
}

/// Why an intervention that acts at every new position does not do so by the same work on the device; null: it does.
const char* difference(const Intervention& i) {
  const auto& op = hooks::find_operator(i.op);
  if (depends_on_tokens(i.text)) return "depends on the tokens";
  if (is_behind_blocks(i.point)) return "changes what comes after the last block";
  if (hooks::position_axis(i.point) != 1) return "changes scores, which have one more key at every step";
  if (!is_range(i.rows) || !is_range(i.heads)) return "chooses rows or heads that are no range";
  if (!op.is_replayable) return "does work that may wait for the device";
  const int64_t stored_rank = hooks::head_axis(i.point) ? 4 : 3;
  for (const auto& [layer, operands] : i.values) {
    if (op.mixes_positions && operands.empty()) return "depends on other positions";
    if (!op.check_operands && operands.is_v() && operands.v().dim() == stored_rank)
      return "has an operand for each position";
  }
  return nullptr;
}

}  // namespace

DecodeHooks decode_hooks(const Model& model, const hooks::HookRegistry* hooks,
                         const NewPositions& positions) {
  DecodeHooks out{model.make_hooks(), {}};
  if (hooks == nullptr || hooks->empty()) return out;
  const auto interventions = hooks->interventions_alone();
  if (!interventions) {
    out.unfit = "something other than interventions is hooked";
    return out;
  }
  OperandPlacer place(model);
  for (const auto& i : *interventions) {
    const auto when = acts(i, positions);
    if (when == Acts::kNever) continue;
    const char* why = when == Acts::kSometimes ? "acts at some of the new positions" : difference(i);
    if (why != nullptr) {
      out.unfit = concat("an intervention, '", i.op, "' at ", hooks::point_name(i.point), ", ", why);
      return out;
    }
    auto same = place(i);
    same.positions.clear();
    same.first_position = 0;
    same.last_position = kOpen;
    same.text = {};
    out.registry.add(same);
  }
  return out;
}

}  // namespace introspect::models

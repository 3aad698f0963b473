#include "introspect/engine/plan.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <numeric>
#include <set>

#include "introspect/core/check.h"

namespace introspect::engine {

namespace {

constexpr int64_t kMostRowsPerChunk = 2048;  // a product of more rows is no faster

struct TripleHash {
  size_t operator()(const std::array<int64_t, 3>& key) const {
    uint64_t h = 0;
    for (const int64_t part : key) h = (h ^ static_cast<uint64_t>(part)) * 0x9e3779b97f4a7c15ULL + (h >> 29);
    return h;
  }
};

}  // namespace

bool between_blocks(hooks::Point point) {
  return point == hooks::Point::kEmbed || point == hooks::Point::kResidPre ||
         point == hooks::Point::kResidPost;
}

int64_t acting_height(hooks::Point point, int64_t layer) {
  if (point == hooks::Point::kEmbed) return 0;
  return point == hooks::Point::kResidPost ? layer + 1 : layer;
}

Plan::Plan(std::vector<Piece> pieces, std::vector<Capture> captures, const models::Config& cfg,
           torch::ScalarType dtype, torch::Device device, const PlanOptions& options)
    : pieces_(std::move(pieces)), captures_(std::move(captures)), n_layers_(cfg.n_layers) {
  const auto start = std::chrono::steady_clock::now();
  const auto element = static_cast<int64_t>(c10::elementSize(dtype));
  const int64_t keys = 2 * cfg.n_key_value_heads * cfg.d_head, queries = cfg.n_heads * cfg.d_head;
  const int64_t wide = dtype == torch::kFloat64 ? 8 : 4;
  sizes_.chunk_row = element * (4 * cfg.d_model + 3 * (queries + keys) + 4 * cfg.d_mlp);
  sizes_.cached = element * keys * n_layers_;
  sizes_.output = element * cfg.d_model;
  sizes_.residual = wide * cfg.d_model;
  sizes_.pattern = wide * cfg.n_heads;
  rows_per_chunk_ = std::clamp<int64_t>(options.memory_budget / 4 / sizes_.chunk_row, 16, kMostRowsPerChunk);
  // Residuals before and after the block, its keys with room to grow, the lists of places; on devices without the
  // kernel that walks the tree, a mask of every chunk over all keys.
  sizes_.row = element * (2 * cfg.d_model + keys + keys / 2) + 64;
  if (!device.is_cpu()) sizes_.row += element * rows_per_chunk_;

  for (const auto& piece : pieces_) {
    const auto parent = static_cast<size_t>(piece.parent);
    const bool root = piece.parent < 0;
    depths_.push_back(root ? 0 : depths_[parent] + static_cast<int64_t>(pieces_[parent].tokens.size()));
    int64_t stage = root ? 0 : stages_[parent] + (pieces_[parent].model != piece.model ? 1 : 0);
    if (piece.copied >= 0) stage = std::max(stage, stages_[static_cast<size_t>(piece.copied)]) + 1;
    stages_.push_back(stage);
  }
  captures_of_.resize(pieces_.size());
  for (size_t c = 0; c < captures_.size(); ++c)
    captures_of_[static_cast<size_t>(captures_[c].piece)].push_back(static_cast<int64_t>(c));
  find_tops();
  find_units();
  find_passes(options);
  if (options.most_token_layers < PlanOptions{}.most_token_layers) find_carried(options.memory_budget);
  summary_.n_pieces = static_cast<int64_t>(pieces_.size());
  summary_.n_captures = static_cast<int64_t>(captures_.size());
  summary_.n_passes = static_cast<int64_t>(passes_.size());
  summary_.seconds_to_plan = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Nothing above what is read: the last block whose output is, and the last one that anybody's attention looks into.
void Plan::find_tops() {
  outputs_.assign(pieces_.size(), -1);
  tops_.assign(pieces_.size(), -1);
  for (const auto& capture : captures_) {
    const auto piece = static_cast<size_t>(capture.piece);
    tops_[piece] = std::max<int64_t>(tops_[piece], 0);
    if (capture.what == Capture::What::cache) tops_[piece] = n_layers_ - 1;
    for (const int64_t layer : capture.layers) {
      const bool residual = capture.what == Capture::What::activation && between_blocks(capture.point);
      if (residual)
        outputs_[piece] = std::max(outputs_[piece], acting_height(capture.point, layer) - 1);
      else
        tops_[piece] = std::max(tops_[piece], layer);
    }
  }
  const auto raise = [&](int64_t piece, int64_t top) {
    if (piece >= 0) tops_[static_cast<size_t>(piece)] = std::max(tops_[static_cast<size_t>(piece)], top);
  };
  for (size_t p = pieces_.size(); p-- > 0;) {
    tops_[p] = std::max(tops_[p], outputs_[p]);
    raise(pieces_[p].parent, tops_[p]);
    raise(pieces_[p].copied, tops_[p]);
  }
}

bool Plan::present(int64_t piece, int64_t height) const {
  const auto p = static_cast<size_t>(piece);
  if (height <= tops_[p]) return true;
  return height == tops_[p] + 1 && outputs_[p] == tops_[p] && !captures_of_[p].empty();
}

/// Equal content, equal interventions up to a height, and an equal past: one unit.
void Plan::find_units() {
  const auto n = pieces_.size();
  unit_of_.assign(static_cast<size_t>(n_layers_) + 1, std::vector<int32_t>(n, -1));
  n_units_.assign(static_cast<size_t>(n_layers_) + 1, 0);

  // The interventions that act up to a height, as one number: it changes at few heights, and in few pieces.
  std::map<std::vector<int64_t>, int64_t> sets{{{}, 0}};
  std::vector<std::vector<std::pair<int64_t, int64_t>>> changes(
      n);  // of each piece: (height, set from there on)
  for (size_t p = 0; p < n; ++p) {
    std::set<int64_t> heights;
    for (const auto& i : pieces_[p].interventions)
      for (const auto& [layer, operand] : i.values) heights.insert(acting_height(i.point, layer));
    for (const int64_t height : heights) {
      std::vector<int64_t> acting;  // intervention, layer, intervention, layer, ...
      for (size_t i = 0; i < pieces_[p].interventions.size(); ++i) {
        const auto& intervention = pieces_[p].interventions[i];
        for (const auto& [layer, operand] : intervention.values)
          if (acting_height(intervention.point, layer) <= height) {
            acting.push_back(pieces_[p].intervention_ids[i]);
            acting.push_back(layer);
          }
      }
      changes[p].emplace_back(height,
                              sets.try_emplace(acting, static_cast<int64_t>(sets.size())).first->second);
    }
  }

  std::vector<size_t> next(n, 0);
  std::vector<int64_t> set(n, 0);
  for (size_t h = 0; h <= static_cast<size_t>(n_layers_); ++h) {
    std::unordered_map<std::array<int64_t, 3>, int32_t, TripleHash> known;
    known.reserve(h == 0 ? n : static_cast<size_t>(n_units_[h - 1]) + 16);
    for (size_t p = 0; p < n; ++p) {
      if (next[p] < changes[p].size() && changes[p][next[p]].first == static_cast<int64_t>(h))
        set[p] = changes[p][next[p]++].second;
      if (!present(static_cast<int64_t>(p), static_cast<int64_t>(h))) continue;
      const auto& piece = pieces_[p];
      const bool runs = static_cast<int64_t>(h) <= tops_[p];
      // What only waits to be read is what came out of the block below; numbers below -1 are no unit's.
      const int32_t parent = !runs              ? -2 - unit_of_[h - 1][p]
                             : piece.parent < 0 ? -1
                                                : unit_of_[h][static_cast<size_t>(piece.parent)];
      const int32_t copied = piece.copied < 0 ? -1 : unit_of_[h][static_cast<size_t>(piece.copied)];
      // A copy is what it copies, after what stands before it: numbers below -1 are no set's.
      const std::array<int64_t, 3> key = {parent, piece.content, copied < 0 ? set[p] : -2 - copied};
      unit_of_[h][p] = known.try_emplace(key, static_cast<int32_t>(known.size())).first->second;
    }
    n_units_[h] = static_cast<int64_t>(known.size());
  }
}

std::vector<int64_t> Plan::rows_read(int64_t piece, int64_t height) const {
  const auto& here = pieces_[static_cast<size_t>(piece)];
  for (const auto& i : here.interventions)  // what mixes positions needs them all
    for (const auto& [layer, operand] : i.values)
      if (acting_height(i.point, layer) == height && !operand.defined() &&
          hooks::find_operator(i.op).mixes_positions) {
        std::vector<int64_t> all(here.tokens.size());
        std::iota(all.begin(), all.end(), int64_t{0});
        return all;
      }
  std::set<int64_t> rows;
  for (const int64_t c : captures_of_[static_cast<size_t>(piece)]) {
    const auto& capture = captures_[static_cast<size_t>(c)];
    if (capture.what != Capture::What::activation || !between_blocks(capture.point)) continue;
    for (const int64_t layer : capture.layers)
      if (acting_height(capture.point, layer) == height)
        rows.insert(capture.positions.begin(), capture.positions.end());
  }
  return {rows.begin(), rows.end()};
}

int64_t Plan::kept_bytes(const Capture& capture) const {
  const auto p = static_cast<size_t>(capture.piece);
  const auto values = static_cast<int64_t>(capture.positions.size() * capture.layers.size());
  const int64_t end = depths_[p] + static_cast<int64_t>(pieces_[p].tokens.size());
  switch (capture.what) {
    case Capture::What::activation:
      return values * sizes_.residual;
    case Capture::What::attention:
      return values * sizes_.pattern * (capture.last_key - capture.first_key);
    case Capture::What::cache:
      return end * sizes_.cached;
  }
  return 0;
}

/// The pieces, neighbours having as much in common as can be: by tree, and siblings by where they part.
std::vector<int64_t> Plan::depth_first() const {
  std::vector<std::vector<int64_t>> children(pieces_.size() + 1);
  for (size_t p = 0; p < pieces_.size(); ++p)
    children[pieces_[p].parent < 0 ? pieces_.size() : static_cast<size_t>(pieces_[p].parent)].push_back(
        static_cast<int64_t>(p));
  const auto parts_before = [&](int64_t a, int64_t b) {
    for (const auto& unit_of : unit_of_) {
      const auto ua = unit_of[static_cast<size_t>(a)], ub = unit_of[static_cast<size_t>(b)];
      if (ua != ub) return ua < ub;
    }
    return a < b;
  };
  std::vector<int64_t> order, stack;
  const auto push = [&](size_t parent) {
    auto& list = children[parent];
    std::sort(list.begin(), list.end(), parts_before);
    stack.insert(stack.end(), list.rbegin(), list.rend());
  };
  push(pieces_.size());
  while (!stack.empty()) {
    order.push_back(stack.back());
    stack.pop_back();
    push(static_cast<size_t>(order.back()));
  }
  return order;
}

std::vector<int64_t> Plan::with_ancestors(const std::vector<int64_t>& captures) const {
  std::vector<int64_t> out, stack;
  std::vector<bool> seen(pieces_.size(), false);
  const auto visit = [&](int64_t piece) {
    if (piece < 0 || seen[static_cast<size_t>(piece)]) return;
    seen[static_cast<size_t>(piece)] = true;
    stack.push_back(piece);
  };
  for (const int64_t c : captures) visit(captures_[static_cast<size_t>(c)].piece);
  while (!stack.empty()) {
    const int64_t piece = stack.back();
    stack.pop_back();
    out.push_back(piece);
    visit(pieces_[static_cast<size_t>(piece)].parent);
    visit(pieces_[static_cast<size_t>(piece)].copied);
  }
  std::sort(out.begin(), out.end(), [&](int64_t a, int64_t b) {
    const auto sa = stages_[static_cast<size_t>(a)], sb = stages_[static_cast<size_t>(b)];
    return sa != sb ? sa < sb : a < b;
  });
  return out;
}

void Plan::find_passes(const PlanOptions& options) {
  // Groups in the order in which their last pieces stand in the tree.
  std::vector<int64_t> place(pieces_.size());
  const auto order = depth_first();
  for (size_t i = 0; i < order.size(); ++i) place[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  std::map<int64_t, std::vector<int64_t>> groups;
  for (size_t c = 0; c < captures_.size(); ++c) groups[captures_[c].group].push_back(static_cast<int64_t>(c));
  std::vector<std::pair<int64_t, int64_t>> by_place;  // (place, group)
  for (const auto& [group, captures] : groups) {
    int64_t last = -1, tokens = 0, top = 0;
    for (const int64_t c : captures) {
      const auto piece = captures_[static_cast<size_t>(c)].piece;
      const auto p = static_cast<size_t>(piece);
      last = std::max(last, place[p]);
      tokens = std::max(tokens, depths_[p] + static_cast<int64_t>(pieces_[p].tokens.size()));
      top = std::max(top, tops_[p] + 1);
    }
    by_place.emplace_back(last, group);
    summary_.token_layers_asked += tokens * top;
  }
  std::sort(by_place.begin(), by_place.end());

  const auto n_heights = static_cast<size_t>(n_layers_) + 1;
  std::vector<std::vector<int32_t>> stamps(n_heights);  // of each unit: 2 * pass, and 1 if it runs
  for (size_t h = 0; h < n_heights; ++h) stamps[h].assign(static_cast<size_t>(n_units_[h]), -2);
  std::vector<int32_t> piece_stamps(pieces_.size(), -1);
  std::vector<int64_t> rows(n_heights, 0);
  int64_t running = 0, kept = 0;    // rows that go through a block; bytes of what is captured
  int64_t fresh = 0, n_groups = 0;  // of `running`, those that did not in an earlier pass
  int32_t pass = -1;

  struct Added {
    std::vector<std::pair<int32_t*, int32_t>> stamps;  // what stood there before
    std::vector<std::pair<size_t, int64_t>> rows;      // height, how many more
    int64_t running = 0, fresh = 0, kept = 0;
  };
  const auto add = [&](const std::vector<int64_t>& captures) {
    Added added;
    std::vector<int64_t> stack;
    const auto visit = [&](int64_t piece) {
      if (piece < 0 || piece_stamps[static_cast<size_t>(piece)] == pass) return;
      auto& stamp = piece_stamps[static_cast<size_t>(piece)];
      added.stamps.emplace_back(&stamp, stamp);
      stamp = pass;
      stack.push_back(piece);
    };
    for (const int64_t c : captures) {
      added.kept += kept_bytes(captures_[static_cast<size_t>(c)]);
      visit(captures_[static_cast<size_t>(c)].piece);
    }
    while (!stack.empty()) {
      const int64_t piece = stack.back();
      stack.pop_back();
      const auto p = static_cast<size_t>(piece);
      for (size_t h = 0; h < n_heights && present(piece, static_cast<int64_t>(h)); ++h) {
        const bool runs = static_cast<int64_t>(h) <= tops_[p];
        auto& stamp = stamps[h][static_cast<size_t>(unit_of_[h][p])];
        if (stamp >= 2 * pass + (runs ? 1 : 0)) continue;
        const auto more = runs ? pieces_[p].tokens.size() : rows_read(piece, static_cast<int64_t>(h)).size();
        added.stamps.emplace_back(&stamp, stamp);
        added.rows.emplace_back(h, static_cast<int64_t>(more));
        rows[h] += static_cast<int64_t>(more);
        if (runs && pieces_[p].copied < 0) {
          added.running += static_cast<int64_t>(more);
          if (stamp < 0 || stamp % 2 == 0) added.fresh += static_cast<int64_t>(more);
        }
        stamp = 2 * pass + (runs ? 1 : 0);
      }
      visit(pieces_[p].parent);
      visit(pieces_[p].copied);
    }
    running += added.running;
    fresh += added.fresh;
    kept += added.kept;
    ++n_groups;
    return added;
  };
  const auto take_back = [&](const Added& added) {
    for (auto it = added.stamps.rbegin(); it != added.stamps.rend(); ++it) *it->first = it->second;
    for (const auto& [h, more] : added.rows) rows[h] -= more;
    running -= added.running;
    fresh -= added.fresh;
    kept -= added.kept;
    --n_groups;
  };
  const auto widest = [&] { return *std::max_element(rows.begin(), rows.end()); };
  const auto bytes = [&] {
    return widest() * sizes_.row + std::min(widest(), rows_per_chunk_) * sizes_.chunk_row + kept;
  };
  const auto close = [&] {
    if (pass < 0) return;
    widest_ = std::max(widest_, widest());
    summary_.peak_bytes = std::max(summary_.peak_bytes, bytes());
    summary_.token_layers_to_run += running;
    pass_bytes_.push_back(bytes());
  };
  const auto open = [&] {
    close();
    ++pass;
    std::fill(rows.begin(), rows.end(), 0);
    running = fresh = kept = n_groups = 0;
    passes_.emplace_back();
  };

  const auto is_long = [&] {
    return n_groups > options.least_groups &&
           fresh + n_groups * options.group_token_layers > options.most_token_layers;
  };

  for (const auto& [at, group] : by_place) {
    const auto& captures = groups.at(group);
    if (pass < 0) open();
    auto added = add(captures);
    if (!passes_.back().empty() &&
        (bytes() > options.memory_budget || widest() > options.most_rows || is_long())) {
      take_back(added);
      open();
      added = add(captures);
    }
    check<std::invalid_argument>(bytes() <= options.memory_budget, "plan: what read ", group,
                                 " needs takes a memory budget of ", bytes(), " bytes, got ",
                                 options.memory_budget);
    passes_.back().insert(passes_.back().end(), captures.begin(), captures.end());
  }
  close();
}

std::vector<Height> Plan::heights(int64_t pass) const {
  const auto included = with_ancestors(passes_.at(static_cast<size_t>(pass)));
  std::unordered_set<int64_t> read;
  for (const int64_t c : passes_[static_cast<size_t>(pass)])
    read.insert(captures_[static_cast<size_t>(c)].piece);
  std::vector<Height> out(static_cast<size_t>(n_layers_) + 1);
  for (size_t h = 0; h < out.size(); ++h) {
    auto& height = out[h];
    const auto here = static_cast<int64_t>(h);
    // Three times: first what was carried here, then what runs, in the order of the stages, then what is only read.
    const auto& from_before = exchange(pass, here).taken;
    for (const bool is_carried : {true, false})
      for (const int64_t piece : included) {
        const auto p = static_cast<size_t>(piece);
        const int32_t unit = unit_of_[h][p];
        if (here > tops_[p] || (from_before.count(unit) > 0) != is_carried) continue;
        if (!height.slot_of_unit.try_emplace(unit, static_cast<int64_t>(height.slots.size())).second)
          continue;
        Slot slot;
        slot.piece = piece;
        slot.carried = is_carried;
        slot.runs = !is_carried && pieces_[p].copied < 0;
        slot.n_rows = slot.runs ? static_cast<int64_t>(pieces_[p].tokens.size()) : 0;
        if (pieces_[p].parent >= 0)
          slot.parent = height.slot_of_unit.at(unit_of_[h][static_cast<size_t>(pieces_[p].parent)]);
        if (pieces_[p].copied >= 0 && !is_carried)
          slot.copied = height.slot_of_unit.at(unit_of_[h][static_cast<size_t>(pieces_[p].copied)]);
        if (h > 0 && slot.runs) slot.source = out[h - 1].slot_of_unit.at(unit_of_[h - 1][p]);
        slot.first_row = height.n_rows;
        slot.first_key = height.n_keys;
        height.n_rows += slot.n_rows;
        height.n_keys += static_cast<int64_t>(pieces_[p].tokens.size());
        height.slots.push_back(std::move(slot));
      }
    for (const int64_t piece : included) {
      const auto p = static_cast<size_t>(piece);
      if (here <= tops_[p] || !present(piece, here) || h == 0 || read.count(piece) == 0) continue;
      const auto [at, is_new] =
          height.slot_of_unit.try_emplace(unit_of_[h][p], static_cast<int64_t>(height.slots.size()));
      if (is_new) {
        Slot slot;
        slot.piece = piece;
        slot.source = out[h - 1].slot_of_unit.at(unit_of_[h - 1][p]);
        height.slots.push_back(std::move(slot));
      }
      auto& slot = height.slots[static_cast<size_t>(at->second)];
      const auto n_tokens = static_cast<int64_t>(pieces_[p].tokens.size());
      if (slot.n_rows == n_tokens) continue;
      const auto rows = rows_read(piece, here);
      std::vector<int64_t> both;
      std::set_union(slot.rows.begin(), slot.rows.end(), rows.begin(), rows.end(), std::back_inserter(both));
      slot.rows = std::move(both);
      slot.n_rows = static_cast<int64_t>(slot.rows.size());
      if (slot.n_rows == n_tokens) slot.rows.clear();  // all of them
    }
    for (auto& slot : height.slots)
      if (!slot.runs && !slot.carried && slot.copied < 0) {
        slot.first_row = height.n_rows;
        height.n_rows += slot.n_rows;
      }
  }
  return out;
}

int64_t Plan::slot_of(const std::vector<Height>& heights, int64_t height, int64_t piece) const {
  const auto h = static_cast<size_t>(height);
  const int32_t unit = unit_of_[h][static_cast<size_t>(piece)];
  const auto found = heights[h].slot_of_unit.find(unit);
  return unit < 0 || found == heights[h].slot_of_unit.end() ? -1 : found->second;
}

}  // namespace introspect::engine

#include "engine/plan.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <numeric>
#include <set>

#include "introspect/core/check.h"

namespace introspect::engine {

namespace {

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
    : pieces_(std::move(pieces)),
      captures_(std::move(captures)),
      n_layers_(cfg.n_layers),
      bytes_(cfg, dtype) {
  const auto start = std::chrono::steady_clock::now();
  rows_per_chunk_ = std::clamp<int64_t>(options.memory_budget / 4 / bytes_.in_block, 16, kMaxRowsPerProduct);
  const auto element = static_cast<int64_t>(c10::elementSize(dtype));
  // Residuals before and after the block, its keys with room to grow, the lists of places; on devices without the
  // kernel that walks the tree, a mask of every chunk over all keys.
  row_bytes_ = 2 * bytes_.residual + bytes_.keys + bytes_.keys / 2 + 64;
  if (!device.is_cpu()) row_bytes_ += element * rows_per_chunk_;

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
  find_sources(cfg, element);
  find_tops();
  find_units();
  find_passes(options);
  if (passes_.size() == 1 && device.is_cpu()) widen_products(options.memory_budget);
  if (options.most_token_layers < PlanOptions{}.most_token_layers) find_carried(options.memory_budget);
  summary_.n_pieces = static_cast<int64_t>(pieces_.size());
  summary_.n_captures = static_cast<int64_t>(captures_.size());
  summary_.n_passes = static_cast<int64_t>(passes_.size());
  summary_.seconds_to_plan = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What the budget has left beside the only pass: quantised weights are unpacked once for the rows of a product.
void Plan::widen_products(int64_t memory_budget) {
  auto& bytes = pass_bytes_.front();
  const int64_t without = bytes - std::min(widest_, rows_per_chunk_) * bytes_.in_block;
  rows_per_chunk_ =
      std::clamp((memory_budget - without) / bytes_.in_block, rows_per_chunk_, kMaxRowsPerProduct);
  bytes = without + std::min(widest_, rows_per_chunk_) * bytes_.in_block;
  summary_.peak_bytes = bytes;
}

/// A block that is run for one piece alone stashes what it reads itself: what comes before it does not.
void Plan::find_sources(const models::Config& cfg, int64_t element) {
  const auto points = models::hook_points(cfg);
  for (const auto& piece : pieces_) {
    auto& sources = sources_.emplace_back();
    auto& bytes = source_bytes_.emplace_back(0);
    for (const auto& i : piece.interventions)
      for (const auto& [layer, operands] : i.values) {
        if (!i.source) continue;
        const auto site = hooks::source_site(i, layer);
        const bool same_block = site.layer == layer && !between_blocks(i.point) &&
                                (!between_blocks(site.point) || site.point == hooks::Point::kResidPre);
        if (same_block) continue;
        sources.push_back({site, acting_height(site.point, site.layer), acting_height(i.point, layer)});
        bytes += static_cast<int64_t>(piece.tokens.size()) * element * points.width(site.point).value_or(0) *
                 points.heads(site.point).value_or(1);
      }
  }
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
      for (const auto& [layer, operands] : i.values) heights.insert(acting_height(i.point, layer));
    for (const int64_t height : heights) {
      std::vector<int64_t> acting;  // intervention, layer, intervention, layer, ...
      for (size_t i = 0; i < pieces_[p].interventions.size(); ++i) {
        const auto& intervention = pieces_[p].interventions[i];
        for (const auto& [layer, operands] : intervention.values)
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
    for (const auto& [layer, operands] : i.values)
      if (acting_height(i.point, layer) == height && operands.empty() &&
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
      return values * bytes_.kept;
    case Capture::What::attention:
      return values * bytes_.kept_weight * (capture.last_key - capture.first_key);
    case Capture::What::cache:
      return end * n_layers_ * bytes_.keys;
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

#include "engine/plan.h"

#include <algorithm>
#include <map>
#include <utility>

#include "introspect/core/check.h"

namespace introspect::engine {

/// Shares captures out among passes: groups in the order of the tree, each in the pass before it as long as that stays
/// within the budget.
class Packing {
 public:
  Packing(Plan& plan, const PlanOptions& options)
      : plan_(plan),
        options_(options),
        n_heights_(static_cast<size_t>(plan.n_layers_) + 1),
        stamps_(n_heights_),
        piece_stamps_(plan.pieces_.size(), -1),
        rows_(n_heights_, 0) {
    for (size_t h = 0; h < n_heights_; ++h) stamps_[h].assign(static_cast<size_t>(plan.n_units_[h]), -2);
  }

  void pack() {
    for (const auto& captures : groups_in_order()) {
      if (pass_ < 0) open();
      auto added = add(captures);
      if (!plan_.passes_.back().empty() && is_too_large()) {
        take_back(added);
        open();
        added = add(captures);
      }
      check<std::invalid_argument>(bytes() <= options_.memory_budget, "plan: the reading ",
                                   plan_.captures_[static_cast<size_t>(captures.front())].group,
                                   " needs a memory budget of ", bytes(), " bytes, got ",
                                   options_.memory_budget);
      plan_.passes_.back().insert(plan_.passes_.back().end(), captures.begin(), captures.end());
    }
    close();
  }

 private:
  using Captures = std::vector<int64_t>;

  /// What a group of captures has changed, to be taken back.
  struct Added {
    std::vector<std::pair<int32_t*, int32_t>> stamps;  // what stood there before
    std::vector<std::pair<size_t, int64_t>> rows;      // height, how many more
    int64_t running = 0, fresh = 0, kept = 0;
  };

  /// The captures of each group; groups in the order in which their last pieces stand in the tree.
  std::vector<Captures> groups_in_order() {
    std::vector<int64_t> place(plan_.pieces_.size());
    const auto order = plan_.depth_first();
    for (size_t i = 0; i < order.size(); ++i) place[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
    std::map<int64_t, Captures> groups;
    for (size_t c = 0; c < plan_.captures_.size(); ++c)
      groups[plan_.captures_[c].group].push_back(static_cast<int64_t>(c));
    std::vector<std::pair<int64_t, int64_t>> by_place;  // (place, group)
    for (const auto& [group, captures] : groups) {
      int64_t last = -1, tokens = 0, top = 0;
      for (const int64_t c : captures) {
        const auto piece = plan_.captures_[static_cast<size_t>(c)].piece;
        const auto p = static_cast<size_t>(piece);
        last = std::max(last, place[p]);
        tokens = std::max(tokens, plan_.depths_[p] + static_cast<int64_t>(plan_.pieces_[p].tokens.size()));
        top = std::max(top, plan_.tops_[p] + 1);
      }
      by_place.emplace_back(last, group);
      plan_.summary_.token_layers_asked += tokens * top;
    }
    std::sort(by_place.begin(), by_place.end());
    std::vector<Captures> out;
    out.reserve(by_place.size());
    for (const auto& [at, group] : by_place) out.push_back(std::move(groups.at(group)));
    return out;
  }

  Added add(const Captures& captures) {
    Added added;
    std::vector<int64_t> stack;
    const auto visit = [&](int64_t piece) {
      if (piece < 0 || piece_stamps_[static_cast<size_t>(piece)] == pass_) return;
      auto& stamp = piece_stamps_[static_cast<size_t>(piece)];
      added.stamps.emplace_back(&stamp, stamp);
      stamp = pass_;
      added.kept += plan_.source_bytes_[static_cast<size_t>(piece)];
      stack.push_back(piece);
    };
    for (const int64_t c : captures) {
      added.kept += plan_.kept_bytes(plan_.captures_[static_cast<size_t>(c)]);
      visit(plan_.captures_[static_cast<size_t>(c)].piece);
    }
    while (!stack.empty()) {
      const int64_t piece = stack.back();
      stack.pop_back();
      add_units(piece, added);
      visit(plan_.pieces_[static_cast<size_t>(piece)].parent);
      visit(plan_.pieces_[static_cast<size_t>(piece)].copied);
    }
    running_ += added.running;
    fresh_ += added.fresh;
    kept_ += added.kept;
    ++n_groups_;
    return added;
  }

  /// The piece at every height, unless something that equals it there is in the pass.
  void add_units(int64_t piece, Added& added) {
    const auto p = static_cast<size_t>(piece);
    for (size_t h = 0; h < n_heights_ && plan_.present(piece, static_cast<int64_t>(h)); ++h) {
      const bool runs = static_cast<int64_t>(h) <= plan_.tops_[p];
      auto& stamp = stamps_[h][static_cast<size_t>(plan_.unit_of_[h][p])];
      if (stamp >= 2 * pass_ + (runs ? 1 : 0)) continue;
      const auto more =
          runs ? plan_.pieces_[p].tokens.size() : plan_.rows_read(piece, static_cast<int64_t>(h)).size();
      added.stamps.emplace_back(&stamp, stamp);
      added.rows.emplace_back(h, static_cast<int64_t>(more));
      rows_[h] += static_cast<int64_t>(more);
      if (runs && plan_.pieces_[p].copied < 0) {
        added.running += static_cast<int64_t>(more);
        if (stamp < 0 || stamp % 2 == 0) added.fresh += static_cast<int64_t>(more);
      }
      stamp = 2 * pass_ + (runs ? 1 : 0);
    }
  }

  void take_back(const Added& added) {
    for (auto it = added.stamps.rbegin(); it != added.stamps.rend(); ++it) *it->first = it->second;
    for (const auto& [h, more] : added.rows) rows_[h] -= more;
    running_ -= added.running;
    fresh_ -= added.fresh;
    kept_ -= added.kept;
    --n_groups_;
  }

  int64_t widest() const { return *std::max_element(rows_.begin(), rows_.end()); }

  int64_t bytes() const {
    return widest() * plan_.row_bytes_ + std::min(widest(), plan_.rows_per_chunk_) * plan_.bytes_.in_block +
           kept_;
  }

  bool is_too_large() const {
    const bool is_long = n_groups_ > options_.least_groups &&
                         fresh_ + n_groups_ * options_.group_token_layers > options_.most_token_layers;
    return bytes() > options_.memory_budget || widest() > options_.most_rows || is_long;
  }

  void close() {
    if (pass_ < 0) return;
    plan_.widest_ = std::max(plan_.widest_, widest());
    plan_.summary_.peak_bytes = std::max(plan_.summary_.peak_bytes, bytes());
    plan_.summary_.token_layers_to_run += running_;
    plan_.pass_bytes_.push_back(bytes());
  }

  void open() {
    close();
    ++pass_;
    std::fill(rows_.begin(), rows_.end(), 0);
    running_ = fresh_ = kept_ = n_groups_ = 0;
    plan_.passes_.emplace_back();
  }

  Plan& plan_;
  const PlanOptions& options_;
  const size_t n_heights_;
  std::vector<std::vector<int32_t>> stamps_;  // of each unit: 2 * pass, and 1 if it runs
  std::vector<int32_t> piece_stamps_;
  std::vector<int64_t> rows_;         // of the pass, by height
  int64_t running_ = 0, kept_ = 0;    // rows that go through a block; bytes of what is captured
  int64_t fresh_ = 0, n_groups_ = 0;  // of `running_`, those that did not in an earlier pass
  int32_t pass_ = -1;
};

void Plan::find_passes(const PlanOptions& options) {
  Packing(*this, options).pack();
}

std::vector<std::vector<int64_t>> Plan::block_runs(size_t n_models) const {
  std::vector<std::vector<int64_t>> out(n_models, std::vector<int64_t>(static_cast<size_t>(n_layers_), 0));
  for (size_t pass = 0; pass < passes_.size(); ++pass) {
    const auto pieces = pieces_of(static_cast<int64_t>(pass));
    for (size_t h = 0; h < static_cast<size_t>(n_layers_); ++h) {
      const auto& taken = exchange(static_cast<int64_t>(pass), static_cast<int64_t>(h)).taken;
      std::vector<bool> runs(n_models, false);
      for (const int64_t piece : pieces) {
        const auto p = static_cast<size_t>(piece);
        if (static_cast<int64_t>(h) > tops_[p] || pieces_[p].copied >= 0 || taken.count(unit_of_[h][p]) > 0)
          continue;
        runs[static_cast<size_t>(pieces_[p].model)] = true;
      }
      for (size_t m = 0; m < n_models; ++m) out[m][h] += runs[m] ? 1 : 0;
    }
  }
  return out;
}

}  // namespace introspect::engine

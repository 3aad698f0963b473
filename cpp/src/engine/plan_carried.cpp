#include "engine/plan.h"

#include <algorithm>
#include <iterator>
#include <unordered_set>
#include <utility>

namespace introspect::engine {

/// Works out what passes leave to one another: what is in several of them runs in the first and is kept until the last,
/// what is needed soonest first where there is no room for all.
class Carrying {
 public:
  Carrying(Plan& plan, int64_t memory_budget)
      : plan_(plan), budget_(memory_budget), n_layers_(static_cast<size_t>(plan.n_layers_)) {}

  void find() {
    find_uses();
    find_outputs();
    find_outputs_of_sources();
    plan_.summary_.peak_bytes = 0;
    plan_.exchanges_.resize(plan_.passes_.size());
    for (size_t pass = 0; pass < plan_.passes_.size(); ++pass) {
      auto& exchange = plan_.exchanges_[pass];
      exchange.resize(n_layers_);
      take(pass, exchange);
      leave(pass, exchange);
    }
  }

 private:
  static constexpr int32_t kNever = -1;

  /// A unit in a pass, and the next pass that it is in.
  struct Use {
    int32_t unit = 0, next = kNever;
    int64_t piece = 0;
  };

  /// What later passes go on from, if any do.
  struct Output {
    bool all = false;
    std::vector<int64_t> rows;
  };

  struct Held {
    Left what;
    int32_t next = kNever;
  };

  int32_t unit(size_t height, int64_t piece) const {
    return plan_.unit_of_[height][static_cast<size_t>(piece)];
  }
  bool has_keys(size_t height, int64_t piece) const {
    return static_cast<int64_t>(height) <= plan_.tops_[static_cast<size_t>(piece)];
  }
  size_t n_tokens(int64_t piece) const { return plan_.pieces_[static_cast<size_t>(piece)].tokens.size(); }

  /// From the last pass to the first.
  void find_uses() {
    const auto n = plan_.passes_.size();
    uses_.assign(n, std::vector<std::vector<Use>>(n_layers_));
    first_.resize(n_layers_);
    for (size_t h = 0; h < n_layers_; ++h) first_[h].assign(static_cast<size_t>(plan_.n_units_[h]), kNever);
    for (size_t pass = n; pass-- > 0;)
      for (const int64_t piece : plan_.with_ancestors(plan_.passes_[pass]))
        for (size_t h = 0; h < n_layers_ && has_keys(h, piece); ++h) {
          auto& next = first_[h][static_cast<size_t>(unit(h, piece))];
          if (next == static_cast<int32_t>(pass)) continue;  // another piece of the pass is this unit
          uses_[pass][h].push_back({unit(h, piece), next, piece});
          next = static_cast<int32_t>(pass);
        }
  }

  int32_t first(size_t height, int64_t piece) const {
    return first_[height][static_cast<size_t>(unit(height, piece))];
  }

  void find_outputs() {
    outputs_.resize(n_layers_);
    // What stands above and comes into a pass later.
    for (const auto& of_pass : uses_)
      for (size_t h = 1; h < n_layers_; ++h)
        for (const auto& [unit_above, next, piece] : of_pass[h])
          if (plan_.pieces_[static_cast<size_t>(piece)].copied < 0 && first(h - 1, piece) < first(h, piece))
            outputs_[h - 1][unit(h - 1, piece)].all = true;
    // A reading inside a block runs the unit again, from all of its input; one after the last block needs rows only.
    for (size_t pass = 0; pass < plan_.passes_.size(); ++pass)
      for (const int64_t c : plan_.passes_[pass]) {
        const auto& capture = plan_.captures_[static_cast<size_t>(c)];
        for (const auto h : heights_of(capture)) {
          if (h == 0 || first(h - 1, capture.piece) == static_cast<int32_t>(pass)) continue;
          auto& output = outputs_[h - 1][unit(h - 1, capture.piece)];
          if (has_keys(h, capture.piece)) {
            output.all = true;
            continue;
          }
          const auto rows = plan_.rows_read(capture.piece, static_cast<int64_t>(h));
          std::vector<int64_t> both;
          std::set_union(output.rows.begin(), output.rows.end(), rows.begin(), rows.end(),
                         std::back_inserter(both));
          output.rows = std::move(both);
          output.all = output.all || output.rows.size() == n_tokens(capture.piece);
        }
      }
  }

  /// A source is read in the pass that uses it: its block runs there, from all of its input.
  void find_outputs_of_sources() {
    for (size_t pass = 0; pass < plan_.passes_.size(); ++pass)
      for (const int64_t piece : plan_.pieces_of(static_cast<int64_t>(pass)))
        for (const auto& source : plan_.sources(piece)) {
          const auto h = static_cast<size_t>(source.read_height);
          if (h > 0) outputs_[h - 1][unit(h - 1, piece)].all = true;
        }
  }

  /// Where a capture reads what must have run in its own pass. A cache is made of keys, which are carried.
  std::vector<size_t> heights_of(const Capture& capture) const {
    std::vector<size_t> out;
    if (capture.what == Capture::What::cache) return out;
    for (const int64_t layer : capture.layers) {
      const bool residual = capture.what == Capture::What::activation && between_blocks(capture.point);
      out.push_back(static_cast<size_t>(residual ? acting_height(capture.point, layer) : layer));
    }
    return out;
  }

  /// Which units of a pass are held and need not run: from the last block down, since what runs above needs an output.
  void take(size_t pass, std::vector<Exchange>& exchange) {
    std::vector<std::unordered_set<int32_t>> read(n_layers_ + 1);
    std::vector<std::unordered_set<int32_t>> needs_all(n_layers_ + 1);
    for (const int64_t c : plan_.passes_[pass]) {
      const auto& capture = plan_.captures_[static_cast<size_t>(c)];
      for (const auto h : heights_of(capture)) read[h].insert(unit(h, capture.piece));
      read_sources(capture.piece, n_layers_, read);
    }
    held_.resize(n_layers_);
    for (size_t h = n_layers_; h-- > 0;) {
      auto& taken = exchange[h].taken;
      for (const auto& [unit_here, next, piece] : uses_[pass][h]) {
        const auto& of_piece = plan_.pieces_[static_cast<size_t>(piece)];
        const auto held = held_[h].find(unit_here);
        // Keys that are carried stand first, so those of the pieces before them must be carried too.
        const bool is_taken = held != held_[h].end() && read[h].count(unit_here) == 0 &&
                              (needs_all[h].count(unit_here) == 0 || held->second.what.all) &&
                              (of_piece.parent < 0 || taken.count(unit(h, of_piece.parent)) > 0);
        if (!is_taken) {
          if (h > 0 && of_piece.copied < 0) needs_all[h - 1].insert(unit(h - 1, piece));
          read_sources(piece, h, read);
          continue;
        }
        taken.insert(unit_here);
        if (of_piece.copied < 0)
          plan_.summary_.token_layers_to_run -= static_cast<int64_t>(of_piece.tokens.size());
      }
    }
  }

  /// What is used at a height, or after the last block, is read where it stands.
  void read_sources(int64_t piece, size_t height, std::vector<std::unordered_set<int32_t>>& read) const {
    for (const auto& source : plan_.sources(piece)) {
      const auto used = static_cast<size_t>(source.used_height);
      const bool is_used = used == height || (height == n_layers_ && !has_keys(used, piece));
      if (is_used && source.read_height < source.used_height)
        read[static_cast<size_t>(source.read_height)].insert(
            unit(static_cast<size_t>(source.read_height), piece));
    }
  }

  /// What is held after a pass.
  void leave(size_t pass, std::vector<Exchange>& exchange) {
    const bool is_last = pass + 1 == plan_.passes_.size();
    const int64_t room = budget_ - plan_.pass_bytes_[pass] - held_bytes_;
    const int64_t room_then = is_last ? 0 : budget_ - plan_.pass_bytes_[pass + 1];
    struct Candidate {
      int32_t next = 0;
      size_t height = 0;
      Left what;
      bool is_new = false;
    };
    std::vector<Candidate> candidates;
    for (size_t h = 0; h < n_layers_; ++h) {
      for (const auto& [unit_here, next, piece] : uses_[pass][h]) {
        const auto held = held_[h].find(unit_here);
        if (held != held_[h].end()) {
          held->second.next = next;
        } else if (next != kNever) {
          Left what{unit_here, piece, false, {}};
          if (const auto output = outputs_[h].find(unit_here); output != outputs_[h].end()) {
            what.all = output->second.all;
            what.rows = output->second.rows;
          }
          candidates.push_back({next, h, std::move(what), true});
        }
      }
      for (auto& [unit_here, held] : held_[h])
        if (held.next != kNever) candidates.push_back({held.next, h, held.what, false});
    }
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const auto& a, const auto& b) { return a.next < b.next; });
    auto before = std::exchange(held_, {});
    held_.resize(n_layers_);
    int64_t added = 0, total = 0;
    for (auto& candidate : candidates) {
      const auto bytes = bytes_of(candidate.what);
      if (total + bytes > room_then || (candidate.is_new && added + bytes > room)) continue;
      total += bytes;
      if (candidate.is_new) {
        added += bytes;
        exchange[candidate.height].left.push_back(candidate.what);
      }
      const auto unit_here = candidate.what.unit;
      held_[candidate.height].emplace(unit_here, Held{std::move(candidate.what), candidate.next});
    }
    for (size_t h = 0; h < n_layers_; ++h)
      for (const auto& [unit_here, held] : before[h])
        if (held_[h].count(unit_here) == 0) exchange[h].dropped.push_back(unit_here);
    auto& peak = plan_.summary_.peak_bytes;
    peak = std::max(peak, plan_.pass_bytes_[pass] + held_bytes_ + added);
    held_bytes_ = total;
  }

  int64_t bytes_of(const Left& what) const {
    const auto n = static_cast<int64_t>(n_tokens(what.piece));
    return n * plan_.bytes_.keys +
           (what.all ? n : static_cast<int64_t>(what.rows.size())) * plan_.bytes_.residual;
  }

  Plan& plan_;
  const int64_t budget_;
  const size_t n_layers_;
  std::vector<std::vector<std::vector<Use>>> uses_;           // [pass][height], ancestors first
  std::vector<std::vector<int32_t>> first_;                   // [height][unit]: the first pass
  std::vector<std::unordered_map<int32_t, Output>> outputs_;  // [height]
  std::vector<std::unordered_map<int32_t, Held>> held_;       // [height]
  int64_t held_bytes_ = 0;
};

const Exchange& Plan::exchange(int64_t pass, int64_t height) const {
  static const Exchange nothing;
  const auto p = static_cast<size_t>(pass), h = static_cast<size_t>(height);
  return p < exchanges_.size() && h < exchanges_[p].size() ? exchanges_[p][h] : nothing;
}

void Plan::find_carried(int64_t memory_budget) {
  Carrying(*this, memory_budget).find();
}

}  // namespace introspect::engine

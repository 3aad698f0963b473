#include "introspect/engine/plan.h"

#include <algorithm>
#include <iterator>
#include <unordered_set>

namespace introspect::engine {

namespace {

void unite(Carried& output, const std::vector<int64_t>& rows, size_t n_tokens) {
  std::vector<int64_t> both;
  std::set_union(output.rows.begin(), output.rows.end(), rows.begin(), rows.end(), std::back_inserter(both));
  output.rows = std::move(both);
  output.all = output.all || output.rows.size() == n_tokens;
}

}  // namespace

const CarriedUnits& Plan::carried(int64_t pass, int64_t height) const {
  static const CarriedUnits nothing;
  const auto p = static_cast<size_t>(pass), h = static_cast<size_t>(height);
  return p < carried_.size() && h < carried_[p].size() ? carried_[p][h] : nothing;
}

/// What has keys both in a pass and in the one before it, but for what the pass reads on its way.
std::vector<CarriedUnits> Plan::shared_with_the_pass_before(int64_t pass) const {
  const auto before = with_ancestors(passes_[static_cast<size_t>(pass) - 1]);
  const auto here = with_ancestors(passes_[static_cast<size_t>(pass)]);
  const auto n_layers = static_cast<size_t>(n_layers_);
  std::vector<std::unordered_set<int32_t>> read(n_layers);
  for (const int64_t c : passes_[static_cast<size_t>(pass)]) {
    const auto& capture = captures_[static_cast<size_t>(c)];
    if (capture.what == Capture::What::cache) continue;  // keys, which are carried
    for (const int64_t layer : capture.layers) {
      const bool residual = capture.what == Capture::What::activation && between_blocks(capture.point);
      const auto h = static_cast<size_t>(residual ? acting_height(capture.point, layer) : layer);
      if (h < n_layers) read[h].insert(unit_of_[h][static_cast<size_t>(capture.piece)]);
    }
  }
  std::vector<CarriedUnits> out(n_layers);
  for (size_t h = 0; h < n_layers; ++h) {
    const auto has_keys = [&](int64_t piece) {
      return static_cast<int64_t>(h) <= tops_[static_cast<size_t>(piece)];
    };
    std::unordered_set<int32_t> there;
    for (const int64_t piece : before)
      if (has_keys(piece)) there.insert(unit_of_[h][static_cast<size_t>(piece)]);
    for (const int64_t piece : here) {
      if (!has_keys(piece)) continue;
      const auto p = static_cast<size_t>(piece);
      const int32_t unit = unit_of_[h][p];
      if (there.count(unit) == 0 || read[h].count(unit) > 0) continue;
      // Carried keys stand first, so those of the pieces before them must be carried too.
      const auto parent = pieces_[p].parent;
      if (parent >= 0 && out[h].count(unit_of_[h][static_cast<size_t>(parent)]) == 0) continue;
      out[h].try_emplace(unit, Carried{piece, false, {}});
    }
  }
  return out;
}

/// Whose output is needed, and which rows of it: what stands above and is not carried itself goes on from it.
void Plan::add_outputs(int64_t pass, std::vector<CarriedUnits>& carried) const {
  for (const int64_t piece : with_ancestors(passes_[static_cast<size_t>(pass)])) {
    const auto p = static_cast<size_t>(piece);
    for (size_t h = 0; h < carried.size() && static_cast<int64_t>(h) <= tops_[p]; ++h) {
      const auto below = carried[h].find(unit_of_[h][p]);
      if (below == carried[h].end() || below->second.all) continue;
      const auto above = static_cast<int64_t>(h) + 1;
      if (above <= tops_[p]) {
        if (pieces_[p].copied < 0 && carried[h + 1].count(unit_of_[h + 1][p]) == 0) below->second.all = true;
      } else if (present(piece, above)) {
        unite(below->second, rows_read(piece, above), pieces_[p].tokens.size());
      }
    }
  }
}

int64_t Plan::bytes_of(const std::vector<CarriedUnits>& carried) const {
  int64_t bytes = 0;
  for (const auto& units : carried)
    for (const auto& [unit, one] : units) {
      const auto n = static_cast<int64_t>(pieces_[static_cast<size_t>(one.piece)].tokens.size());
      bytes += n * sizes_.cached / n_layers_;
      bytes += (one.all ? n : static_cast<int64_t>(one.rows.size())) * sizes_.output;
    }
  return bytes;
}

/// Each pass takes from the one before it what both need, where the budget has room for that in both.
void Plan::find_carried(int64_t memory_budget) {
  const auto n = passes_.size();
  std::vector<std::vector<CarriedUnits>> shared(n);
  for (size_t pass = 1; pass < n; ++pass)
    shared[pass] = shared_with_the_pass_before(static_cast<int64_t>(pass));
  std::vector<int64_t> bytes(n + 1, 0);
  for (bool fits = false; !fits;) {
    carried_ = shared;
    // From the last: what is carried on further is needed by all passes on the way.
    for (size_t pass = n; pass-- > 1;) {
      auto& here = carried_[pass];
      add_outputs(static_cast<int64_t>(pass), here);
      if (pass + 1 < n)
        for (size_t h = 0; h < carried_[pass + 1].size() && h < here.size(); ++h)
          for (const auto& [unit, further] : carried_[pass + 1][h]) {
            const auto found = here[h].find(unit);
            if (found == here[h].end()) continue;
            found->second.all = found->second.all || further.all;
            unite(found->second, further.rows, pieces_[static_cast<size_t>(further.piece)].tokens.size());
          }
      bytes[pass] = bytes_of(here);
    }
    fits = true;
    for (size_t pass = 0; pass < n; ++pass) {
      const int64_t room = memory_budget - pass_bytes_[pass];
      if (bytes[pass] + bytes[pass + 1] <= room) continue;
      fits = false;
      const auto drop = [&](size_t link) {
        if (link >= n) return;
        shared[link].clear();
        bytes[link] = 0;
      };
      drop(pass + 1);
      if (bytes[pass] > room) drop(pass);
    }
  }
  summary_.peak_bytes = 0;
  for (size_t pass = 0; pass < n; ++pass) {
    summary_.peak_bytes = std::max(summary_.peak_bytes, pass_bytes_[pass] + bytes[pass] + bytes[pass + 1]);
    for (const auto& units : carried_[pass])
      for (const auto& [unit, one] : units) {
        const auto& piece = pieces_[static_cast<size_t>(one.piece)];
        if (piece.copied < 0) summary_.token_layers_to_run -= static_cast<int64_t>(piece.tokens.size());
      }
  }
}

}  // namespace introspect::engine

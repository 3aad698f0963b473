// What interventions read at one point and use at another, outside of the block that they change.

#include "engine/pass.h"

#include "introspect/core/check.h"

namespace introspect::engine {

void Pass::find_sources() {
  sources_.resize(heights_.size());
  for (const int64_t piece : plan_.pieces_of(number_))
    for (const auto& source : plan_.sources(piece)) {
      const int64_t slot = plan_.slot_of(heights_, source.read_height, piece);
      if (slot < 0) continue;
      auto& here = sources_[static_cast<size_t>(source.read_height)];
      const Source one{slot, source.site};
      if (std::find(here.begin(), here.end(), one) == here.end()) here.push_back(one);
    }
}

torch::Tensor& Pass::stashed(hooks::Site site, int64_t height, int64_t piece) {
  return stash_[{site.layer, site.point, plan_.unit_of(height, piece)}];
}

void Pass::stash_residual(int64_t h, hooks::Point point) {
  for (const auto& [s, site] : sources_[static_cast<size_t>(h)]) {
    const auto& slot = height(h).slots[static_cast<size_t>(s)];
    if (site.point == point && !slot.carried)
      stashed(site, h, slot.piece) = x_MD_.narrow(0, slot.first_row, slot.n_rows).clone();
  }
}

void Pass::stash_within(hooks::HookRegistry& hooks, int64_t layer, int64_t first, int64_t n) {
  for (const auto& [s, site] : sources_[static_cast<size_t>(layer)]) {
    const auto& slot = height(layer).slots[static_cast<size_t>(s)];
    const int64_t from = std::max(slot.first_row, first),
                  to = std::min(slot.first_row + slot.n_rows, first + n);
    if (between_blocks(site.point) || !slot.runs || from >= to) continue;
    hooks.observe(hooks::hook_name(site), [this, &slot, layer, first, from, to](const torch::Tensor& x_BT,
                                                                                hooks::Site here) {
      auto& kept = stashed(here, layer, slot.piece);
      auto sizes = x_BT.sizes().vec();
      sizes.erase(sizes.begin());
      sizes.front() = slot.n_rows;
      if (!kept.defined()) kept = at::empty(sizes, x_BT.options());
      kept.narrow(0, from - slot.first_row, to - from).copy_(x_BT[0].narrow(0, from - first, to - from));
    });
  }
}

hooks::Stash Pass::stash_of(const hooks::Intervention& i, int64_t layer, const Slot& slot, int64_t row) {
  hooks::Stash out;
  if (!i.source) return out;
  const auto site = hooks::source_site(i, layer);
  const auto& kept = stashed(site, acting_height(site.point, site.layer), slot.piece);
  if (!kept.defined()) return out;
  if (row < 0) {
    out.put(site, kept.unsqueeze(0));
  } else {
    const bool all = kept.size(0) == static_cast<int64_t>(piece(slot).tokens.size());
    const int64_t at = all ? slot.rows[static_cast<size_t>(row)] : row;
    out.put(site, kept.narrow(0, at, 1).unsqueeze(0));
  }
  return out;
}

}  // namespace introspect::engine

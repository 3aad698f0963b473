// What a pass reads: residuals between blocks, what captures watch inside one, rows of attention, caches.

#include "engine/pass.h"

#include <limits>

#include "introspect/ops/attention.h"

namespace introspect::engine {

void Pass::keep_residual(int64_t h, hooks::Point point, int64_t layer) {
  std::vector<Kept> kept;
  Indices rows;
  for (const int64_t c : captures_) {
    const auto& wanted = capture(c);
    if (wanted.what != Capture::What::activation || wanted.point != point) continue;
    const auto at = std::find(wanted.layers.begin(), wanted.layers.end(), layer);
    if (at == wanted.layers.end()) continue;
    const auto& slot = height(h).slots[static_cast<size_t>(plan_.slot_of(heights_, h, wanted.piece))];
    for (size_t i = 0; i < wanted.positions.size(); ++i) {
      int64_t row = wanted.positions[i];
      if (!slot.rows.empty())
        row = std::lower_bound(slot.rows.begin(), slot.rows.end(), row) - slot.rows.begin();
      rows.push_back(slot.first_row + row);
      kept.push_back({c, static_cast<int64_t>(i), at - wanted.layers.begin()});
    }
  }
  if (rows.empty()) return;
  const auto values = x_MD_.index_select(0, as_tensor(rows, device())).to(wide());
  for (size_t i = 0; i < kept.size(); ++i) keep(kept[i], values[static_cast<int64_t>(i)]);
}

void Pass::keep(const Kept& at, const torch::Tensor& value) {
  if (!value.is_cpu()) {
    waiting_.emplace_back(at, value.clone());
    return;
  }
  auto& kept = values_[at.capture];
  const auto& wanted = capture(at.capture);
  if (!kept.defined()) {
    auto sizes = value.sizes().vec();
    sizes.insert(sizes.begin(),
                 {static_cast<int64_t>(wanted.positions.size()), static_cast<int64_t>(wanted.layers.size())});
    kept = at::zeros(sizes, value.options());
  }
  const int64_t layer = wanted.layers[static_cast<size_t>(at.layer)];
  for (size_t l = 0; l < wanted.layers.size(); ++l)  // also one that is asked for twice
    if (wanted.layers[l] == layer) kept[at.position][static_cast<int64_t>(l)].copy_(value);
}

std::vector<Pass::Kept> Pass::watch(hooks::HookRegistry& hooks, const models::Model& model, int64_t layer,
                                    int64_t first, int64_t n, bool pattern_is_built) {
  std::vector<Kept> attention;
  std::map<hooks::Point, std::vector<std::pair<Kept, int64_t>>> watched;  // with the row in the chunk
  for (const int64_t c : captures_) {
    const auto& wanted = capture(c);
    if (wanted.what == Capture::What::cache ||
        (wanted.what == Capture::What::activation && between_blocks(wanted.point)))
      continue;
    const auto at = std::find(wanted.layers.begin(), wanted.layers.end(), layer);
    if (at == wanted.layers.end()) continue;
    const auto& slot = height(layer).slots[static_cast<size_t>(plan_.slot_of(heights_, layer, wanted.piece))];
    for (size_t i = 0; i < wanted.positions.size(); ++i) {
      const int64_t row = slot.first_row + wanted.positions[i] - first;
      if (row < 0 || row >= n) continue;
      const Kept kept{c, static_cast<int64_t>(i), at - wanted.layers.begin()};
      if (wanted.what == Capture::What::activation) {
        watched[wanted.point].emplace_back(kept, row);
      } else if (pattern_is_built) {
        watched[hooks::Point::kPattern].emplace_back(kept, row);
      } else {
        attention.push_back(kept);
        watched[query_point(model)].emplace_back(kept, row);
      }
    }
  }
  for (const auto& [point, rows] : watched)
    hooks.observe(hooks::hook_name({point, layer}),
                  [this, rows = rows](const torch::Tensor& x, hooks::Site site) {
                    for (const auto& [kept, row] : rows) {
                      const auto value = x[0].select(hooks::position_axis(site.point) - 1, row);
                      if (site.point == hooks::Point::kPattern)
                        keep_pattern(kept, value.to(wide()));
                      else if (capture(kept.capture).what == Capture::What::attention)
                        queries_[{kept.capture, kept.position}] = value.clone();
                      else
                        keep(kept, value.to(wide()));
                    }
                  });
  return attention;
}

void Pass::keep_attention(const models::Model& model, int64_t layer, const std::vector<Kept>& asked) {
  const auto& attn = block(model, layer).parts().attn;
  const auto& options = attn.options();
  for (const auto& kept : asked) {
    const auto& wanted = capture(kept.capture);
    const auto& slot = height(layer).slots[static_cast<size_t>(plan_.slot_of(heights_, layer, wanted.piece))];
    const int64_t row = wanted.positions[static_cast<size_t>(kept.position)];
    const auto path = path_to(slot.first_key + row);
    const auto q_BTHK =
        queries_.at({kept.capture, kept.position}).view({1, 1, options.n_heads, options.d_head});
    const auto k_BGSK = keys_->keys(layer).index_select(2, as_tensor(path, device(layer)));
    ops::AttentionMask mask;
    mask.causal = false;
    auto scores_HS = attn.scores(q_BTHK, k_BGSK, mask).view({options.n_heads, -1});
    const auto n_path = static_cast<int64_t>(path.size());
    if (options.local && model.cfg().window_size > 0 && n_path > model.cfg().window_size)
      scores_HS.slice(1, 0, n_path - model.cfg().window_size).fill_(-std::numeric_limits<double>::infinity());
    keep_pattern(
        kept, attn.pattern(scores_HS.to(wide()).view({1, options.n_heads, 1, -1})).view(scores_HS.sizes()));
  }
  queries_.clear();
}

void Pass::keep_pattern(const Kept& kept, torch::Tensor pattern_HS) {
  const auto& wanted = capture(kept.capture);
  if (!wanted.heads.empty())
    pattern_HS = pattern_HS.index_select(0, as_tensor(wanted.heads, pattern_HS.device()));
  // Keys after the query are not seen: zero.
  auto out = at::zeros({pattern_HS.size(0), wanted.last_key - wanted.first_key}, pattern_HS.options());
  const int64_t seen = std::min(wanted.last_key, pattern_HS.size(1)) - wanted.first_key;
  if (seen > 0) out.narrow(1, 0, seen).copy_(pattern_HS.narrow(1, wanted.first_key, seen));
  keep(kept, out);
}

/// Everything that was read on a device comes to the host in one copy.
void Pass::keep_waiting() {
  if (waiting_.empty()) return;
  std::vector<torch::Tensor> flat;
  for (const auto& [at, value] : waiting_) flat.push_back(value.flatten().to(device()));
  const auto all = at::cat(flat).cpu();
  int64_t first = 0;
  for (const auto& [at, value] : waiting_) {
    keep(at, all.narrow(0, first, value.numel()).view(value.sizes()));
    first += value.numel();
  }
  waiting_.clear();
}

std::vector<std::pair<int64_t, Captured>> Pass::collect() {
  keep_waiting();
  std::vector<std::pair<int64_t, Captured>> out;
  for (const int64_t c : captures_) {
    Captured captured;
    if (const auto cache = caches_.find(c); cache != caches_.end())
      captured.cache = std::move(cache->second);
    else
      captured.values = std::move(values_.at(c));
    out.emplace_back(c, std::move(captured));
  }
  return out;
}

}  // namespace introspect::engine

#include "engine/pass.h"

#include <numeric>

#include "core/on_device.h"
#include "introspect/core/check.h"
#include "ops/equal_rows.h"

namespace introspect::engine {

Pass::Pass(const Plan& plan, int64_t number, const Models& models, ResidualBuffers& buffers, HeldUnits& held)
    : plan_(plan),
      number_(number),
      models_(models),
      captures_(plan.passes()[static_cast<size_t>(number)]),
      heights_(plan.heights(number)),
      buffers_(buffers),
      held_(held) {
  int64_t widest = plan.widest();
  for (const auto& height : heights_) widest = std::max(widest, height.n_rows);
  if (!buffers.x_MD.defined() || buffers.x_MD.size(0) < widest) {
    buffers = {};
    buffers.x_MD =
        at::empty({widest, first_model().cfg().d_model}, at::device(device()).dtype(first_model().dtype()));
    buffers.y_MD = at::empty_like(buffers.x_MD);
  }
  for (const int64_t c : captures_) {
    const auto& capture = this->capture(c);
    if (capture.what == Capture::What::cache) caches_.emplace(c, first_model().make_cache(1));
  }
  find_sources();
}

std::vector<std::pair<int64_t, Captured>> Pass::run(const std::function<void(int64_t)>& tick) {
  const ops::EqualRows equal_rows;
  const int64_t n_layers = plan_.n_layers();
  int64_t h = 0;
  for (; h <= n_layers; ++h) {
    if (height(h).slots.empty()) break;
    enter(h);
    if (height(h).n_keys == 0) break;  // nothing goes on from here
    run_block(h, tick);
  }
  for (; h < n_layers; ++h) drop(h);
  return collect();
}

void Pass::enter(int64_t h) {
  x_MD_ = buffers_.x_MD.narrow(0, 0, height(h).n_rows);
  if (h == 0)
    embed();
  else
    at::index_select_out(x_MD_, y_MD_, 0, as_tensor(places_below(h), device()));
  intervene(h, [&](const hooks::Intervention& i) { return i.point != hooks::Point::kResidPre; });
  keep_residual(h, hooks::Point::kResidPost, h - 1);
  if (h == 0) keep_residual(h, hooks::Point::kEmbed, -1);
  stash_residual(h, h == 0 ? hooks::Point::kEmbed : hooks::Point::kResidPost);
  intervene(h, [&](const hooks::Intervention& i) { return i.point == hooks::Point::kResidPre; });
  keep_residual(h, hooks::Point::kResidPre, h);
  stash_residual(h, hooks::Point::kResidPre);
}

void Pass::embed() {
  int64_t n_rows = 0;
  const auto& slots = height(0).slots;
  for (size_t first = 0, last = 0; first < slots.size(); first = last) {
    Indices tokens, positions;
    while (last < slots.size() && piece(slots[last]).model == piece(slots[first]).model) {
      const auto& slot = slots[last++];
      if (!slot.runs) continue;
      const auto& ids = piece(slot).tokens;
      tokens.insert(tokens.end(), ids.begin(), ids.end());
      for (size_t i = 0; i < ids.size(); ++i)
        positions.push_back(plan_.depth(slot.piece) + static_cast<int64_t>(i));
    }
    if (tokens.empty()) continue;
    const auto x_BTD =
        model(slots[first])
            .embed(as_tensor(tokens, device()).unsqueeze(0), as_tensor(positions, device()).unsqueeze(0));
    x_MD_.narrow(0, n_rows, x_BTD.size(1)).copy_(x_BTD.squeeze(0));
    n_rows += x_BTD.size(1);
  }
}

Indices Pass::places_below(int64_t h) const {
  Indices out;
  out.reserve(static_cast<size_t>(height(h).n_rows));
  for (const auto& slot : height(h).slots) {
    if (slot.copied >= 0 || slot.carried) continue;
    const auto& source = outputs_[static_cast<size_t>(slot.source)];
    const auto& wanted = slot.rows;
    for (int64_t i = 0; i < slot.n_rows; ++i) {
      const int64_t row = wanted.empty() ? i : wanted[static_cast<size_t>(i)];
      out.push_back(source.first + source.place_of(row));
    }
  }
  return out;
}

void Pass::intervene(int64_t h, const std::function<bool(const hooks::Intervention&)>& chosen) {
  for (const auto& slot : height(h).slots) {
    if (slot.copied >= 0 || slot.n_rows == 0) continue;
    for (const auto& i : piece(slot).interventions) {
      if (!between_blocks(i.point) || !chosen(i)) continue;
      for (const auto& [layer, operands] : i.values) {
        if (acting_height(i.point, layer) != h) continue;
        auto rows = x_MD_.narrow(0, slot.first_row, slot.n_rows);
        if (slot.rows.empty()) {
          const auto stash = stash_of(i, layer, slot);
          rows.copy_(
              hooks::apply(i, layer, rows.unsqueeze(0), piece(slot).offset, nullptr, &stash).squeeze(0));
        } else {
          // Rows that are only waiting to be read stand apart: each is at its own position.
          for (int64_t r = 0; r < slot.n_rows; ++r) {
            auto row = rows.narrow(0, r, 1);
            const int64_t at = piece(slot).offset + slot.rows[static_cast<size_t>(r)];
            const auto stash = stash_of(i, layer, slot, r);
            row.copy_(hooks::apply(i, layer, row.unsqueeze(0), at, nullptr, &stash).squeeze(0));
          }
        }
      }
    }
  }
}

void Pass::find_outputs(int64_t layer) {
  outputs_.assign(height(layer).slots.size(), {});
  const auto add = [&](int64_t slot, bool all, const Indices& rows) {
    auto& out = outputs_[static_cast<size_t>(slot)];
    Indices both;
    std::set_union(out.rows.begin(), out.rows.end(), rows.begin(), rows.end(), std::back_inserter(both));
    out.rows = std::move(both);
    out.all = out.all || all;
  };
  for (const auto& above : height(layer + 1).slots)
    if (above.copied < 0 && !above.carried) add(above.source, above.rows.empty(), above.rows);
  for (const auto& left : plan_.exchange(number_, layer).left)
    add(height(layer).slot_of_unit.at(left.unit), left.all, left.rows);
  // What is carried comes as it was left, and stands after what runs.
  for (const int32_t unit : plan_.exchange(number_, layer).taken) {
    auto& out = outputs_[static_cast<size_t>(height(layer).slot_of_unit.at(unit))];
    const auto& held = held_[static_cast<size_t>(layer)].at(unit);
    out.all = held.all;
    out.rows = held.rows;
  }
  int64_t first = 0;
  for (const bool is_carried : {false, true})
    for (size_t s = 0; s < outputs_.size(); ++s) {
      const auto& slot = height(layer).slots[s];
      if (slot.carried != is_carried) continue;
      outputs_[s].first = first;
      if (slot.runs || slot.carried) first += n_outputs(s, slot);
    }
  y_MD_ = buffers_.y_MD.narrow(0, 0, first);
  n_outputs_ = 0;
}

void Pass::take_carried(int64_t layer) {
  for (const auto& slot : height(layer).slots) {
    if (!slot.carried) break;  // they stand first
    const auto& held = held_[static_cast<size_t>(layer)].at(plan_.unit_of(layer, slot.piece));
    keys_->append(layer, held.keys, held.values);
  }
}

void Pass::drop(int64_t layer) {
  for (const int32_t unit : plan_.exchange(number_, layer).dropped)
    held_[static_cast<size_t>(layer)].erase(unit);
}

void Pass::leave_carried(int64_t layer) {
  auto& held = held_[static_cast<size_t>(layer)];
  const auto& slots = height(layer).slots;
  for (size_t s = 0; s < slots.size() && slots[s].carried; ++s) {
    const auto n = n_outputs(s, slots[s]);
    if (n == 0) continue;
    y_MD_.narrow(0, n_outputs_, n).copy_(held.at(plan_.unit_of(layer, slots[s].piece)).outputs_MD);
    n_outputs_ += n;
  }
  drop(layer);
  for (const auto& left : plan_.exchange(number_, layer).left) {
    const auto s = static_cast<size_t>(height(layer).slot_of_unit.at(left.unit));
    const auto n = static_cast<int64_t>(piece(slots[s]).tokens.size());
    auto& one = held[left.unit];
    one = {keys_->keys(layer).narrow(2, slots[s].first_key, n).clone(),
           keys_->values(layer).narrow(2, slots[s].first_key, n).clone(),
           {},
           left.all,
           left.rows};
    Indices places;
    for (int64_t i = 0; i < (left.all ? n : static_cast<int64_t>(left.rows.size())); ++i)
      places.push_back(outputs_[s].first +
                       outputs_[s].place_of(left.all ? i : left.rows[static_cast<size_t>(i)]));
    if (!places.empty()) one.outputs_MD = y_MD_.index_select(0, as_tensor(places, device()));
  }
}

void Pass::run_block(int64_t layer, const std::function<void(int64_t)>& tick) {
  find_outputs(layer);
  const auto& here = height(layer);
  keys_ = std::make_unique<cache::KVCache>(first_model().make_cache(1));
  keys_->reserve(here.n_keys, layer);
  parents_S_ = at::empty({here.n_keys}, torch::kInt);
  depths_S_ = at::empty({here.n_keys}, torch::kLong);
  auto* parents = parents_S_.mutable_data_ptr<int32_t>();
  auto* depths = depths_S_.mutable_data_ptr<int64_t>();
  for (const auto& slot : here.slots) {
    if (!slot.runs && !slot.carried && slot.copied < 0) continue;
    const auto n = static_cast<int64_t>(piece(slot).tokens.size());
    for (int64_t i = 0; i < n; ++i) {
      depths[slot.first_key + i] = plan_.depth(slot.piece) + i;
      parents[slot.first_key + i] =
          static_cast<int32_t>(i > 0 ? slot.first_key + i - 1 : last_key(here, slot.parent));
    }
  }

  take_carried(layer);
  const auto add_outputs = [&](const torch::Tensor& y_MD) {
    y_MD_.narrow(0, n_outputs_, y_MD.size(0)).copy_(y_MD);
    n_outputs_ += y_MD.size(0);
  };
  int64_t first_row = 0, n_rows = 0;  // of the chunk that is being put together
  const models::Model* chunk_model = nullptr;
  const auto flush = [&] {
    for (; n_rows > 0;) {
      const int64_t n_chunks = (n_rows + plan_.rows_per_chunk() - 1) / plan_.rows_per_chunk();
      const int64_t n = (n_rows + n_chunks - 1) / n_chunks;  // of about one size: few rows are slow
      add_outputs(run_rows(*chunk_model, layer, first_row, n));
      tick(n);
      first_row += n;
      n_rows -= n;
    }
  };
  for (size_t s = 0; s < here.slots.size(); ++s) {
    const auto& slot = here.slots[s];
    if (slot.copied >= 0) {
      flush();
      copy_keys(layer, here, slot);
    } else if (slot.runs) {
      const bool alone = is_changed_within(slot, layer);
      if (alone || chunk_model != &model(slot)) flush();
      chunk_model = &model(slot);
      if (n_rows == 0) first_row = slot.first_row;
      n_rows += slot.n_rows;
      if (!alone) continue;
      add_outputs(run_alone(*chunk_model, layer, s));
      tick(n_rows);
      n_rows = 0;
    }
  }
  flush();
  leave_carried(layer);
  for (auto& [c, cache] : caches_) {
    const Indices path = path_to(last_key(here, plan_.slot_of(heights_, layer, capture(c).piece)));
    append_keys(cache, layer, path);
    if (layer + 1 == plan_.n_layers()) cache.commit(static_cast<int64_t>(path.size()), {});
  }
  keys_.reset();
  blocks_.clear();
}

int64_t Pass::last_key(const Height& here, int64_t slot) const {
  if (slot < 0) return -1;
  const auto& s = here.slots[static_cast<size_t>(slot)];
  return s.first_key + static_cast<int64_t>(piece(s).tokens.size()) - 1;
}

Indices Pass::path_to(int64_t key) const {
  Indices path;
  const auto* parents = parents_S_.const_data_ptr<int32_t>();
  for (; key >= 0; key = parents[key]) path.push_back(key);
  std::reverse(path.begin(), path.end());
  return path;
}

void Pass::append_keys(cache::KVCache& to, int64_t layer, const Indices& path) const {
  const auto rows = as_tensor(path, device(layer));
  to.append(layer, keys_->keys(layer).index_select(2, rows), keys_->values(layer).index_select(2, rows));
}

bool Pass::is_changed_within(const Slot& slot, int64_t layer) const {
  const auto& all = piece(slot).interventions;
  return std::any_of(all.begin(), all.end(), [&](const hooks::Intervention& i) {
    return !between_blocks(i.point) && i.values.count(layer) > 0;
  });
}

void Pass::copy_keys(int64_t layer, const Height& here, const Slot& slot) {
  const auto& from = here.slots[static_cast<size_t>(slot.copied)];
  const int64_t first = from.first_key + piece(slot).copied_first;
  const auto n = static_cast<int64_t>(piece(slot).tokens.size());
  keys_->append(layer, keys_->keys(layer).narrow(2, first, n).clone(),
                keys_->values(layer).narrow(2, first, n).clone());
}

nn::Context Pass::context(const models::Model& model, int64_t layer, const torch::Tensor& depths_T,
                          const torch::Tensor& parents_S) const {
  nn::Context ctx;
  ctx.layer = layer;
  const bool local = model.cfg().is_local(layer);
  auto& positions = local ? ctx.local : ctx.global;
  positions = model.positions_in_tree(on_device(depths_T, device()), parents_S, local).to(device(layer));
  return ctx;
}

const nn::Block& Pass::block(const models::Model& model, int64_t layer) {
  auto& held = blocks_[&model];
  if (!held) held = model.block(layer);
  return *held;
}

torch::Tensor Pass::run_rows(const models::Model& model, int64_t layer, int64_t first, int64_t n) {
  const int64_t first_key = keys_->length(layer);
  auto ctx = context(model, layer, depths_S_.narrow(0, first_key, n), parents_S_.narrow(0, 0, first_key + n));
  ctx.cache = keys_.get();
  auto hooks = model.make_hooks();
  const auto watched = watch(hooks, model, layer, first, n, /*pattern_is_built=*/false);
  stash_within(hooks, layer, first, n);
  ctx.hooks = hooks.empty() ? nullptr : &hooks;
  const auto outputs = outputs_of(layer, first, n);
  if (outputs && hooks.empty()) ctx.outputs = torch::tensor(*outputs, torch::kLong);
  const auto x_BTD = x_MD_.narrow(0, first, n).unsqueeze(0).to(device(layer));
  auto y_MD = block(model, layer).forward(x_BTD, ctx).squeeze(0);
  keep_attention(model, layer, watched);
  return outputs && !hooks.empty() ? y_MD.index_select(0, as_tensor(*outputs, device(layer))) : y_MD;
}

std::optional<Indices> Pass::outputs_of(int64_t layer, int64_t first, int64_t n) const {
  Indices rows;
  const auto& slots = height(layer).slots;
  for (size_t s = 0; s < slots.size(); ++s) {
    const auto& slot = slots[s];
    if (!slot.runs || slot.first_row + slot.n_rows <= first || slot.first_row >= first + n) continue;
    const auto add = [&](int64_t row) {
      const int64_t at = slot.first_row + row - first;
      if (at >= 0 && at < n) rows.push_back(at);
    };
    if (outputs_[s].all)
      for (int64_t i = 0; i < slot.n_rows; ++i) add(i);
    else
      for (const int64_t row : outputs_[s].rows) add(row);
  }
  if (static_cast<int64_t>(rows.size()) == n) return std::nullopt;
  return rows;
}

torch::Tensor Pass::run_alone(const models::Model& model, int64_t layer, size_t s) {
  const auto& here = height(layer);
  const auto& slot = here.slots[s];
  const auto path = path_to(last_key(here, slot.parent));
  auto own = first_model().make_cache(1);
  if (!path.empty()) append_keys(own, layer, path);
  const auto n_path = static_cast<int64_t>(path.size());
  Indices chain(static_cast<size_t>(n_path + slot.n_rows));
  std::iota(chain.begin(), chain.end(), int64_t{-1});
  auto ctx = context(model, layer, depths_S_.narrow(0, slot.first_key, slot.n_rows),
                     torch::tensor(chain, torch::kInt));
  ctx.cache = &own;
  ctx.offset = piece(slot).offset;
  auto hooks = model.make_hooks();
  hooks::Stash stash;
  for (auto i : piece(slot).interventions) {
    if (between_blocks(i.point)) continue;
    std::erase_if(i.values, [&](const auto& value) { return value.first != layer; });
    if (i.values.empty()) continue;
    stash.merge(stash_of(i, layer, slot));
    hooks.add(i);
  }
  ctx.stash = &stash;
  const bool pattern_is_built =
      hooks.changes({hooks::Point::kAttnScores, layer}) || hooks.changes({hooks::Point::kPattern, layer});
  const auto watched = watch(hooks, model, layer, slot.first_row, slot.n_rows, pattern_is_built);
  stash_within(hooks, layer, slot.first_row, slot.n_rows);
  ctx.hooks = &hooks;
  const auto x_BTD = x_MD_.narrow(0, slot.first_row, slot.n_rows).unsqueeze(0).to(device(layer));
  auto y_MD = block(model, layer).forward(x_BTD, ctx).squeeze(0);
  keys_->append(layer, own.keys(layer).narrow(2, n_path, slot.n_rows),
                own.values(layer).narrow(2, n_path, slot.n_rows));
  keep_attention(model, layer, watched);
  const auto outputs = outputs_of(layer, slot.first_row, slot.n_rows);
  return outputs ? y_MD.index_select(0, as_tensor(*outputs, device(layer))) : y_MD;
}

}  // namespace introspect::engine

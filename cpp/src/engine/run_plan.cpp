#include "introspect/engine/run_plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <unordered_map>

#include <ATen/core/grad_mode.h>

#include "introspect/core/check.h"
#include "introspect/ops/attention.h"

namespace introspect::engine {

namespace {

using Indices = std::vector<int64_t>;
using Models = std::vector<std::shared_ptr<const models::Model>>;

torch::Tensor as_tensor(const Indices& list, torch::Device device) {
  return torch::tensor(list, torch::kLong).to(device);
}

/// Where residuals stand before a block and after it, in all layers of all passes: tensors of every size would leave the
/// allocator with holes that cost as much again.
struct Room {
  torch::Tensor x_MD, y_MD;
};

/// What a pass leaves of a unit to later ones.
struct Held {
  torch::Tensor keys, values;  // [1, G, T, K]
  torch::Tensor outputs_MD;    // of the tokens that something goes on from:
  bool all = false;            // all of them, or these
  Indices rows;
};
using HeldUnits = std::vector<std::unordered_map<int32_t, Held>>;  // by height

/// One pass of a plan.
class Pass {
 public:
  Pass(const Plan& plan, int64_t number, const Models& models, Room& room, HeldUnits& held)
      : plan_(plan),
        number_(number),
        models_(models),
        captures_(plan.passes()[static_cast<size_t>(number)]),
        heights_(plan.heights(number)),
        room_(room),
        held_(held) {
    int64_t widest = plan.widest();
    for (const auto& height : heights_) widest = std::max(widest, height.n_rows);
    if (!room.x_MD.defined() || room.x_MD.size(0) < widest) {
      room = {};
      room.x_MD =
          at::empty({widest, first_model().cfg().d_model}, at::device(device()).dtype(first_model().dtype()));
      room.y_MD = at::empty_like(room.x_MD);
    }
    for (const int64_t c : captures_) {
      const auto& capture = this->capture(c);
      if (capture.what == Capture::What::cache) caches_.emplace(c, first_model().make_cache(1));
    }
  }

  /// `tell(n)`: n more tokens went through a layer.
  std::vector<std::pair<int64_t, Captured>> run(const std::function<void(int64_t)>& tell) {
    const int64_t n_layers = plan_.n_layers();
    int64_t h = 0;
    for (; h <= n_layers; ++h) {
      if (height(h).slots.empty()) break;
      enter(h);
      if (height(h).n_keys == 0) break;  // nothing goes on from here
      run_block(h, tell);
    }
    for (; h < n_layers; ++h) drop(h);
    return collect();
  }

 private:
  const Capture& capture(int64_t c) const { return plan_.captures()[static_cast<size_t>(c)]; }
  const Piece& piece(const Slot& slot) const { return plan_.pieces()[static_cast<size_t>(slot.piece)]; }
  const Height& height(int64_t h) const { return heights_[static_cast<size_t>(h)]; }
  const models::Model& model(const Slot& slot) const {
    return *models_[static_cast<size_t>(piece(slot).model)];
  }
  const models::Model& first_model() const { return *models_.front(); }
  torch::Device device() const { return first_model().device(); }
  torch::ScalarType wide() const {
    return first_model().dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  }

  // ---- between blocks --------------------------------------------------------------------------------------------

  /// The residual of every slot at height h, with what acts there.
  void enter(int64_t h) {
    x_MD_ = room_.x_MD.narrow(0, 0, height(h).n_rows);
    if (h == 0)
      embed();
    else
      at::index_select_out(x_MD_, y_MD_, 0, as_tensor(places_below(h), device()));
    intervene(h, [&](const hooks::Intervention& i) { return i.point != hooks::Point::kResidPre; });
    keep_residual(h, hooks::Point::kResidPost, h - 1);
    if (h == 0) keep_residual(h, hooks::Point::kEmbed, -1);
    intervene(h, [&](const hooks::Intervention& i) { return i.point == hooks::Point::kResidPre; });
    keep_residual(h, hooks::Point::kResidPre, h);
  }

  void embed() {
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

  /// Where the rows of height h stand in what came out of the block below.
  Indices places_below(int64_t h) const {
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

  void intervene(int64_t h, const std::function<bool(const hooks::Intervention&)>& chosen) {
    for (const auto& slot : height(h).slots) {
      if (slot.copied >= 0 || slot.n_rows == 0) continue;
      for (const auto& i : piece(slot).interventions) {
        if (!between_blocks(i.point) || !chosen(i)) continue;
        for (const auto& [layer, operand] : i.values) {
          if (acting_height(i.point, layer) != h) continue;
          auto rows = x_MD_.narrow(0, slot.first_row, slot.n_rows);
          if (slot.rows.empty()) {
            rows.copy_(hooks::apply(i, layer, rows.unsqueeze(0), piece(slot).offset).squeeze(0));
          } else {
            // Rows that are only waiting to be read stand apart: each is at its own position.
            for (int64_t r = 0; r < slot.n_rows; ++r) {
              auto row = rows.narrow(0, r, 1);
              const int64_t at = piece(slot).offset + slot.rows[static_cast<size_t>(r)];
              row.copy_(hooks::apply(i, layer, row.unsqueeze(0), at).squeeze(0));
            }
          }
        }
      }
    }
  }

  void keep_residual(int64_t h, hooks::Point point, int64_t layer) {
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
    const auto values = x_MD_.index_select(0, as_tensor(rows, device())).to(torch::kCPU, wide());
    for (size_t i = 0; i < kept.size(); ++i) keep(kept[i], values[static_cast<int64_t>(i)]);
  }

  // ---- within a block --------------------------------------------------------------------------------------------

  /// Which rows of a slot's output the height above takes, and where they stand.
  struct Output {
    int64_t first = 0;
    bool all = false;
    Indices rows;  // ascending
    int64_t place_of(int64_t row) const {
      return all ? row : std::lower_bound(rows.begin(), rows.end(), row) - rows.begin();
    }
  };

  void find_outputs(int64_t layer) {
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
    y_MD_ = room_.y_MD.narrow(0, 0, first);
    n_outputs_ = 0;
  }

  int64_t n_outputs(size_t s, const Slot& slot) const {
    return static_cast<int64_t>(outputs_[s].all ? piece(slot).tokens.size() : outputs_[s].rows.size());
  }

  // ---- from pass to pass -----------------------------------------------------------------------------------------

  void take_carried(int64_t layer) {
    for (const auto& slot : height(layer).slots) {
      if (!slot.carried) break;  // they stand first
      const auto& held = held_[static_cast<size_t>(layer)].at(plan_.unit_of(layer, slot.piece));
      keys_->append(layer, held.keys, held.values);
    }
  }

  void drop(int64_t layer) {
    for (const int32_t unit : plan_.exchange(number_, layer).dropped)
      held_[static_cast<size_t>(layer)].erase(unit);
  }

  /// Puts the outputs of what was carried after those of what has run, and leaves what later passes take.
  void leave_carried(int64_t layer) {
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

  // ---- a block ---------------------------------------------------------------------------------------------------

  void run_block(int64_t layer, const std::function<void(int64_t)>& tell) {
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
        const int64_t n = std::min(n_rows, plan_.rows_per_chunk());
        add_outputs(run_rows(*chunk_model, layer, first_row, n));
        tell(n);
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
        tell(n_rows);
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

  int64_t last_key(const Height& here, int64_t slot) const {
    if (slot < 0) return -1;
    const auto& s = here.slots[static_cast<size_t>(slot)];
    return s.first_key + static_cast<int64_t>(piece(s).tokens.size()) - 1;
  }

  Indices path_to(int64_t key) const {
    Indices path;
    const auto* parents = parents_S_.const_data_ptr<int32_t>();
    for (; key >= 0; key = parents[key]) path.push_back(key);
    std::reverse(path.begin(), path.end());
    return path;
  }

  /// The keys and values of a path, after what `to` holds.
  void append_keys(cache::KVCache& to, int64_t layer, const Indices& path) const {
    const auto rows = as_tensor(path, device());
    to.append(layer, keys_->keys(layer).index_select(2, rows), keys_->values(layer).index_select(2, rows));
  }

  bool is_changed_within(const Slot& slot, int64_t layer) const {
    const auto& all = piece(slot).interventions;
    return std::any_of(all.begin(), all.end(), [&](const hooks::Intervention& i) {
      return !between_blocks(i.point) && i.values.count(layer) > 0;
    });
  }

  void copy_keys(int64_t layer, const Height& here, const Slot& slot) {
    const auto& from = here.slots[static_cast<size_t>(slot.copied)];
    const int64_t first = from.first_key + piece(slot).copied_first;
    const auto n = static_cast<int64_t>(piece(slot).tokens.size());
    keys_->append(layer, keys_->keys(layer).narrow(2, first, n).clone(),
                  keys_->values(layer).narrow(2, first, n).clone());
  }

  nn::Context context(const models::Model& model, int64_t layer, const torch::Tensor& depths_T,
                      const torch::Tensor& parents_S) const {
    nn::Context ctx;
    ctx.layer = layer;
    const bool local = model.cfg().is_local(layer);
    auto& positions = local ? ctx.local : ctx.global;
    positions = model.positions_in_tree(depths_T.to(device()), parents_S, local);
    return ctx;
  }

  /// A model's weights at the layer that runs: models whose blocks stay in their files have no others in memory.
  const nn::Block& block(const models::Model& model, int64_t layer) {
    auto& held = blocks_[&model];
    if (!held) held = model.block(layer);
    return *held;
  }

  /// Rows [first, first + n) of the height, which are of slots that go on through this block: one product for all.
  torch::Tensor run_rows(const models::Model& model, int64_t layer, int64_t first, int64_t n) {
    const int64_t first_key = keys_->length(layer);
    auto ctx =
        context(model, layer, depths_S_.narrow(0, first_key, n), parents_S_.narrow(0, 0, first_key + n));
    ctx.cache = keys_.get();
    auto hooks = model.make_hooks();
    const auto watched = watch(hooks, model, layer, first, n, /*pattern_is_built=*/false);
    ctx.hooks = hooks.empty() ? nullptr : &hooks;
    const auto outputs = outputs_of(layer, first, n);
    if (outputs && hooks.empty()) ctx.outputs = as_tensor(*outputs, device());
    const auto x_BTD = x_MD_.narrow(0, first, n).unsqueeze(0);
    auto y_MD = block(model, layer).forward(x_BTD, ctx).squeeze(0);
    keep_attention(model, layer, watched);
    return outputs && !hooks.empty() ? y_MD.index_select(0, as_tensor(*outputs, device())) : y_MD;
  }

  /// The rows of a chunk whose output is wanted, from its first; nothing: all of them.
  std::optional<Indices> outputs_of(int64_t layer, int64_t first, int64_t n) const {
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

  /// A slot with interventions inside the block, as a sequence of its own after its path.
  torch::Tensor run_alone(const models::Model& model, int64_t layer, size_t s) {
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
    for (auto i : piece(slot).interventions) {
      if (between_blocks(i.point)) continue;
      std::erase_if(i.values, [&](const auto& value) { return value.first != layer; });
      if (!i.values.empty()) hooks.add(i);
    }
    const bool pattern_is_built =
        hooks.changes({hooks::Point::kAttnScores, layer}) || hooks.changes({hooks::Point::kPattern, layer});
    const auto watched = watch(hooks, model, layer, slot.first_row, slot.n_rows, pattern_is_built);
    ctx.hooks = &hooks;
    const auto x_BTD = x_MD_.narrow(0, slot.first_row, slot.n_rows).unsqueeze(0);
    auto y_MD = block(model, layer).forward(x_BTD, ctx).squeeze(0);
    keys_->append(layer, own.keys(layer).narrow(2, n_path, slot.n_rows),
                  own.values(layer).narrow(2, n_path, slot.n_rows));
    keep_attention(model, layer, watched);
    const auto outputs = outputs_of(layer, slot.first_row, slot.n_rows);
    return outputs ? y_MD.index_select(0, as_tensor(*outputs, device())) : y_MD;
  }

  // ---- what is kept ----------------------------------------------------------------------------------------------

  /// One value of a capture: which position, which layer.
  struct Kept {
    int64_t capture, position, layer;
  };

  void keep(const Kept& at, const torch::Tensor& value) {
    auto& kept = values_[at.capture];
    const auto& wanted = capture(at.capture);
    if (!kept.defined()) {
      auto sizes = value.sizes().vec();
      sizes.insert(sizes.begin(), {static_cast<int64_t>(wanted.positions.size()),
                                   static_cast<int64_t>(wanted.layers.size())});
      kept = at::zeros(sizes, value.options());
    }
    const int64_t layer = wanted.layers[static_cast<size_t>(at.layer)];
    for (size_t l = 0; l < wanted.layers.size(); ++l)  // also one that is asked for twice
      if (wanted.layers[l] == layer) kept[at.position][static_cast<int64_t>(l)].copy_(value);
  }

  /// Hooks for what captures read inside this block of rows [first, first + n) of the height, all of one model. Returns
  /// the readings of attention that are to be made from queries; with `pattern_is_built` they are taken from the block,
  /// as it was changed there.
  std::vector<Kept> watch(hooks::HookRegistry& hooks, const models::Model& model, int64_t layer,
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
      const auto& slot =
          height(layer).slots[static_cast<size_t>(plan_.slot_of(heights_, layer, wanted.piece))];
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
                          keep(kept, value.to(torch::kCPU, wide()));
                      }
                    });
    return attention;
  }

  /// Where queries stand as attention uses them.
  static hooks::Point query_point(const models::Model& model) {
    return model.cfg().positional_embedding_type == "rotary" ? hooks::Point::kRotQ : hooks::Point::kQ;
  }

  /// The rows of the pattern that are asked for: of single queries over their own paths.
  void keep_attention(const models::Model& model, int64_t layer, const std::vector<Kept>& asked) {
    const auto& options = block(model, layer).parts().attn.options();
    for (const auto& kept : asked) {
      const auto& wanted = capture(kept.capture);
      const auto& slot =
          height(layer).slots[static_cast<size_t>(plan_.slot_of(heights_, layer, wanted.piece))];
      const int64_t row = wanted.positions[static_cast<size_t>(kept.position)];
      const auto path = path_to(slot.first_key + row);
      const auto q_BTHK =
          queries_.at({kept.capture, kept.position}).view({1, 1, options.n_heads, options.d_head});
      const auto k_BGSK = keys_->keys(layer).index_select(2, as_tensor(path, device()));
      ops::AttentionMask mask;
      mask.causal = false;
      auto scores_HS = ops::attention_scores(q_BTHK, k_BGSK, 1 / options.scale, mask, options.soft_cap)
                           .view({options.n_heads, -1});
      const auto n_path = static_cast<int64_t>(path.size());
      if (options.local && model.cfg().window_size > 0 && n_path > model.cfg().window_size)
        scores_HS.slice(1, 0, n_path - model.cfg().window_size)
            .fill_(-std::numeric_limits<double>::infinity());
      keep_pattern(kept, at::softmax(scores_HS.to(wide()), -1));
    }
    queries_.clear();
  }

  /// Of one query's pattern over the keys of its path, from the first, the heads and keys that are asked for.
  void keep_pattern(const Kept& kept, torch::Tensor pattern_HS) {
    const auto& wanted = capture(kept.capture);
    if (!wanted.heads.empty()) pattern_HS = pattern_HS.index_select(0, as_tensor(wanted.heads, device()));
    // Keys after the query are not seen: zero.
    auto out = at::zeros({pattern_HS.size(0), wanted.last_key - wanted.first_key}, pattern_HS.options());
    const int64_t seen = std::min(wanted.last_key, pattern_HS.size(1)) - wanted.first_key;
    if (seen > 0) out.narrow(1, 0, seen).copy_(pattern_HS.narrow(1, wanted.first_key, seen));
    keep(kept, out.to(torch::kCPU));
  }

  std::vector<std::pair<int64_t, Captured>> collect() {
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

  const Plan& plan_;
  const int64_t number_;
  const Models& models_;
  const Indices& captures_;
  const std::vector<Height> heights_;
  Room& room_;
  HeldUnits& held_;              // what earlier passes have left, and below the layer that runs this one too
  torch::Tensor x_MD_, y_MD_;    // before a block, and of its wanted outputs after it
  int64_t n_outputs_ = 0;        // of those, how many there are by now
  std::vector<Output> outputs_;  // by slot of the block that ran last
  std::unique_ptr<cache::KVCache> keys_;                                     // of the block that runs
  std::map<const models::Model*, std::shared_ptr<const nn::Block>> blocks_;  // of the layer that runs
  torch::Tensor parents_S_, depths_S_;
  std::map<std::pair<int64_t, int64_t>, torch::Tensor> queries_;  // by capture and position
  std::map<int64_t, torch::Tensor> values_;                       // by capture
  std::map<int64_t, cache::KVCache> caches_;
};

}  // namespace

void run_plan(const Plan& plan, const Models& models, const OnCaptured& on_captured,
              const Progress& progress) {
  const at::NoGradGuard no_grad;
  int64_t done = 0;
  const int64_t total = plan.summary().token_layers_to_run;
  Room room;
  HeldUnits held(static_cast<size_t>(plan.n_layers()));
  for (size_t p = 0; p < plan.passes().size(); ++p) {
    Pass pass(plan, static_cast<int64_t>(p), models, room, held);
    on_captured(pass.run([&](int64_t n) { report(progress, "graph", done += n, total); }));
  }
  report(progress, "graph", total, total);
}

}  // namespace introspect::engine

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "core/on_device.h"
#include "engine/run_plan.h"

namespace introspect::engine {

using Indices = std::vector<int64_t>;
using Models = std::vector<std::shared_ptr<const models::Model>>;

inline torch::Tensor as_tensor(const Indices& list, torch::Device device) {
  return on_device(list, device);
}

/// Where residuals stand before a block and after it, in all layers of all passes: tensors of every size would leave the
/// allocator with holes that cost as much again.
struct ResidualBuffers {
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
  Pass(const Plan& plan, int64_t number, const Models& models, ResidualBuffers& buffers, HeldUnits& held);

  /// `tick(n)`: n more tokens went through a layer.
  std::vector<std::pair<int64_t, Captured>> run(const std::function<void(int64_t)>& tick);

 private:
  const Capture& capture(int64_t c) const { return plan_.captures()[static_cast<size_t>(c)]; }
  const Piece& piece(const Slot& slot) const { return plan_.pieces()[static_cast<size_t>(slot.piece)]; }
  const Height& height(int64_t h) const { return heights_[static_cast<size_t>(h)]; }
  const models::Model& model(const Slot& slot) const {
    return *models_[static_cast<size_t>(piece(slot).model)];
  }
  const models::Model& first_model() const { return *models_.front(); }
  torch::Device device() const { return first_model().device(); }  // of the residuals between blocks
  torch::Device device(int64_t layer) const { return first_model().device(layer); }
  torch::ScalarType wide() const {
    return first_model().dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  }

  /// The residual of every slot at height h, with what acts there.
  void enter(int64_t h);

  void embed();

  /// Where the rows of height h stand in what came out of the block below.
  Indices places_below(int64_t h) const;

  void intervene(int64_t h, const std::function<bool(const hooks::Intervention&)>& chosen);

  void keep_residual(int64_t h, hooks::Point point, int64_t layer);

  /// Which rows of a slot's output the height above takes, and where they stand.
  struct Output {
    int64_t first = 0;
    bool all = false;
    Indices rows;  // ascending
    int64_t place_of(int64_t row) const {
      return all ? row : std::lower_bound(rows.begin(), rows.end(), row) - rows.begin();
    }
  };

  void find_outputs(int64_t layer);

  int64_t n_outputs(size_t s, const Slot& slot) const {
    return static_cast<int64_t>(outputs_[s].all ? piece(slot).tokens.size() : outputs_[s].rows.size());
  }

  void take_carried(int64_t layer);

  void drop(int64_t layer);

  /// Puts the outputs of what was carried after those of what has run, and leaves what later passes take.
  void leave_carried(int64_t layer);

  void run_block(int64_t layer, const std::function<void(int64_t)>& tick);

  int64_t last_key(const Height& here, int64_t slot) const;

  Indices path_to(int64_t key) const;

  /// The keys and values of a path, after what `to` holds.
  void append_keys(cache::KVCache& to, int64_t layer, const Indices& path) const;

  bool is_changed_within(const Slot& slot, int64_t layer) const;

  void copy_keys(int64_t layer, const Height& here, const Slot& slot);

  nn::Context context(const models::Model& model, int64_t layer, const torch::Tensor& depths_T,
                      const torch::Tensor& parents_S) const;

  /// A model's weights at the layer that runs: models whose blocks stay in their files have no others in memory.
  const nn::Block& block(const models::Model& model, int64_t layer);

  /// Rows [first, first + n) of the height, which are of slots that go on through this block: one product for all.
  torch::Tensor run_rows(const models::Model& model, int64_t layer, int64_t first, int64_t n);

  /// The rows of a chunk whose output is wanted, from its first; nothing: all of them.
  std::optional<Indices> outputs_of(int64_t layer, int64_t first, int64_t n) const;

  /// A slot with interventions inside the block, as a sequence of its own after its path.
  torch::Tensor run_alone(const models::Model& model, int64_t layer, size_t s);

  /// One value of a capture: which position, which layer.
  struct Kept {
    int64_t capture, position, layer;
  };

  void keep(const Kept& at, const torch::Tensor& value);

  /// Hooks for what captures read inside this block of rows [first, first + n) of the height, all of one model. Returns
  /// the readings of attention that are to be made from queries; with `pattern_is_built` they are taken from the block,
  /// as it was changed there.
  std::vector<Kept> watch(hooks::HookRegistry& hooks, const models::Model& model, int64_t layer,
                          int64_t first, int64_t n, bool pattern_is_built);

  /// Where queries stand as attention uses them.
  static hooks::Point query_point(const models::Model& model) {
    return model.cfg().positional_embedding_type == "rotary" ? hooks::Point::kRotQ : hooks::Point::kQ;
  }

  /// The rows of the pattern that are asked for: of single queries over their own paths.
  void keep_attention(const models::Model& model, int64_t layer, const std::vector<Kept>& asked);

  /// Of one query's pattern over the keys of its path, from the first, the heads and keys that are asked for.
  void keep_pattern(const Kept& kept, torch::Tensor pattern_HS);

  void keep_waiting();

  std::vector<std::pair<int64_t, Captured>> collect();

  /// What pieces of the pass read for others of their points: which slots at which height.
  void find_sources();

  /// The activation of a unit at a site, [positions, ...]: undefined until it is read.
  torch::Tensor& stashed(hooks::Site site, int64_t height, int64_t piece);

  void stash_residual(int64_t h, hooks::Point point);

  /// Hooks for the sources inside a block, of rows [first, first + n) of the height.
  void stash_within(hooks::HookRegistry& hooks, int64_t layer, int64_t first, int64_t n);

  /// What an intervention on a slot reads: of all its tokens, or of one of its rows.
  hooks::Stash stash_of(const hooks::Intervention& i, int64_t layer, const Slot& slot, int64_t row = -1);

  const Plan& plan_;
  const int64_t number_;
  const Models& models_;
  const Indices& captures_;
  const std::vector<Height> heights_;
  ResidualBuffers& buffers_;
  HeldUnits& held_;              // what earlier passes have left, and below the layer that runs this one too
  torch::Tensor x_MD_, y_MD_;    // before a block, and of its wanted outputs after it
  int64_t n_outputs_ = 0;        // of those, how many there are by now
  std::vector<Output> outputs_;  // by slot of the block that ran last
  std::unique_ptr<cache::KVCache> keys_;                                     // of the block that runs
  std::map<const models::Model*, std::shared_ptr<const nn::Block>> blocks_;  // of the layer that runs
  torch::Tensor parents_S_, depths_S_;
  std::map<std::pair<int64_t, int64_t>, torch::Tensor> queries_;  // by capture and position
  std::map<int64_t, torch::Tensor> values_;                       // by capture, on the CPU
  std::vector<std::pair<Kept, torch::Tensor>> waiting_;           // for the one copy from the device
  struct Source {
    int64_t slot;
    hooks::Site site;
    bool operator==(const Source&) const = default;
  };
  std::vector<std::vector<Source>> sources_;                                   // by height
  std::map<std::tuple<int64_t, hooks::Point, int32_t>, torch::Tensor> stash_;  // by layer, point and unit
  std::map<int64_t, cache::KVCache> caches_;
};

}  // namespace introspect::engine

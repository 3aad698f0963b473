#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/activation_cache.h"
#include "introspect/hooks/hook_point.h"
#include "introspect/hooks/intervention.h"
#include "introspect/hooks/part.h"

namespace introspect::hooks {

/// Sees the activation at a site, or the gradient of it, and returns its replacement (same shape, dtype and device) or
/// nothing. The tensor is a copy of its own: what is written into it in place is a replacement too. If autograd is on
/// and it requires a gradient, it stands in the graph, so that its gradient can be asked for later.
using Callback = std::function<std::optional<torch::Tensor>(const torch::Tensor& value, Site site)>;

/// Sees the activation at a site, or the gradient of it, itself, and must not write into it.
using Observer = std::function<void(const torch::Tensor& value, Site site)>;

using HookId = int64_t;

enum class Direction { kForward, kBackward };

struct HookOptions {
  Direction direction = Direction::kForward;
  bool prepend = false;    // before what stands at the point, not after it
  bool permanent = false;  // stays when the registry is reset, unless asked for
  int64_t level = 0;       // of nesting: a reset can be for one level
};

/// What is kept of an activation.
struct RecordOptions {
  Part part;
  std::optional<torch::Device> device;     // instead of the activation's
  std::optional<torch::ScalarType> dtype;  // instead of the activation's
  bool gradient = false;  // the gradient, under the name with "_grad" after it, not the value
  bool detach = true;     // false: with the graph that gradients flow back through
  bool permanent = false;
  int64_t level = 0;
};

/// What is read and changed during a forward pass and the backward pass after it. A value: a pass never alters it,
/// and a copy, in which hooks keep their ids, is independent of it. Passes of several threads may share one, unless it
/// records; none of them may change it meanwhile.
///
///     auto hooks = model.make_hooks();
///     const auto cache = std::make_shared<hooks::ActivationCache>();
///     hooks.add(hooks::Intervention{.values = {{8, direction}}, .strength = 4.0});
///     hooks.record("blocks.20.hook_resid_post", cache, {.part = {-1}});  // of the last position
///     model.forward(tokens, {.hooks = &hooks});
///     cache->at("blocks.20.hook_resid_post");  // [batch, d_model]
///
/// At one site interventions run first, then callbacks, observers and recorders in the order of addition. A recorder
/// keeps what those before it made; the last one of a site keeps what the next layer sees. What is recorded never
/// changes afterwards, whatever hooks write into. Names are checked when they are added, before anything runs. A site
/// at which nothing is hooked costs one look into a table.
///
/// Gradients are seen at floating-point activations while autograd is on. If nothing before a site requires a
/// gradient, the graph begins there, so that no weight need require one.
class INTROSPECT_EXPORT HookRegistry {
 public:
  explicit HookRegistry(HookPoints points);

  /// Adds a callback at a full hook name. Throws HookError, with the nearest names, for one that does not exist.
  HookId add(std::string_view name, Callback callback, HookOptions options = {});

  /// Adds an intervention. One that is the identity (hooks::is_identity) is checked and given an id, and that is all.
  /// Throws as hooks::validate does, and std::invalid_argument for a direction other than forward.
  HookId add(const Intervention& intervention, HookOptions options = {});

  /// Adds something that only reads. Throws HookError as for a callback.
  HookId observe(std::string_view name, Observer observer, HookOptions options = {});

  /// Keeps the activation, or its gradient, in `cache`: the part asked for, in memory of its own size. A whole
  /// activation is kept without a copy, unless it is a view into a larger one; without detach it is always the tensor
  /// that stands in the graph.
  ///
  /// Throws HookError for a name that does not exist, std::invalid_argument for heads of a point without, a step
  /// below 1 or no cache, std::out_of_range for heads that do not exist.
  HookId record(std::string_view name, std::shared_ptr<ActivationCache> cache, RecordOptions options = {});

  /// Takes one hook away. Throws HookError if there is none of this id.
  void remove(HookId id);

  /// Takes away every hook of the direction (both if not given) and level (all if not given) that is not permanent.
  void reset(std::optional<Direction> direction = {}, bool including_permanent = false,
             std::optional<int64_t> level = {});

  const HookPoints& points() const { return points_; }

  /// True if nothing would be read or changed at any site.
  bool empty() const { return n_actions_ == 0; }

  /// True if a gradient is asked for: of an activation, or of the tensors of an intervention that require one.
  bool needs_grad() const { return n_needing_grad_ > 0; }

  /// True if something is called with gradients: a pass without autograd would never call it.
  bool has_backward() const { return n_backward_ > 0; }

  /// True if something is read or changed at `site`.
  bool wants(Site site) const { return uses_[points_.index(site)] != 0; }

  /// True if something at `site` may change the activation, or is called with its gradient: then the site must be run,
  /// on the whole of the tensor that goes on. Otherwise it is enough to `record` what is `asked`.
  bool changes(Site site) const { return (uses_[points_.index(site)] & kChanges) != 0; }

  /// True if what some intervention changes depends on the text.
  bool reads_text() const { return n_reading_text_ > 0; }

  /// True if some intervention reads a source: a pass needs a Stash.
  bool reads_sources() const { return n_with_source_ > 0; }

  /// The interventions, in an order in which adding them makes the same registry; nothing if anything else is hooked, which
  /// the host must see.
  std::optional<std::vector<Intervention>> interventions_alone() const;

  /// The right to record into every cache of the registry, for a pass over `batch` rows after `offset` positions; it
  /// lives as long as the pass.
  ///
  /// Throws std::out_of_range if an intervention is for rows that are not there, HookError if the text is not known well
  /// enough for one, and Error if another thread is using one of the caches.
  [[nodiscard]] std::vector<SoleUser::Use> enter_pass(int64_t batch, int64_t offset, const Text* text) const;

  /// Runs what stands at `site` on `x`, whose first position is number `offset` of its sequence, and returns the
  /// tensor to go on with. `text`, of which the pass is the end, is needed if reads_text(), and `stash`, which is the
  /// pass's own, if reads_sources().
  ///
  /// Throws HookError if a replacement has another shape, dtype or device. Exceptions of callbacks pass through.
  torch::Tensor run(Site site, const torch::Tensor& x, int64_t offset, const Text* text = nullptr,
                    Stash* stash = nullptr) const;

  /// The part of the activation that is enough for everything at a site that is only read: everything unless all
  /// that stands there asks for the same.
  Part asked(Site site) const;

  /// Shows `x`, which holds only the part `have` of the activation, to what stands at a site that is only read.
  ///
  /// `have` is what `asked` returned, or everything. x has all its dimensions: where `have` is one position, that
  /// dimension has size 1.
  void record(Site site, const torch::Tensor& x, const Part& have) const;

 private:
  struct Action;
  using ActionPtr = std::shared_ptr<const Action>;

  struct Entry {
    bool is_backward() const { return options.direction == Direction::kBackward; }
    const Intervention* intervention() const;  // null for anything else, and for one that changes nothing
    bool reads_text() const;

    HookOptions options;
    bool needs_grad;
    std::vector<size_t> places;   // in table_
    std::vector<size_t> sources;  // of an intervention: where it reads
    ActionPtr action;
    std::shared_ptr<ActivationCache> cache;  // of a recorder
  };

  static constexpr uint8_t kUses = 1, kChanges = 2, kBackward = 4, kStashed = 8;

  HookId insert(const std::vector<Site>& sites, ActionPtr action, HookOptions options,
                std::shared_ptr<ActivationCache> cache = nullptr);
  void update_uses(size_t place);
  void erase(HookId id, const Entry& entry);
  torch::Tensor watch_gradient(Site site, const torch::Tensor& x) const;

  HookPoints points_;
  HookId next_id_ = 1;
  int64_t n_actions_ = 0, n_needing_grad_ = 0, n_backward_ = 0, n_reading_text_ = 0, n_with_source_ = 0;
  std::map<HookId, Entry> entries_;
  std::vector<std::vector<ActionPtr>> table_;  // by HookPoints::index
  std::vector<uint8_t> uses_;                  // by HookPoints::index
  std::vector<int64_t> n_readers_;             // by HookPoints::index: interventions whose source it is
};

/// Throws HookError unless `replacement` has the shape, dtype and device of `value`, the activation or gradient that
/// a hook at `name` was given.
INTROSPECT_EXPORT void check_replacement(std::string_view name, const torch::Tensor& value,
                                         const torch::Tensor& replacement);

}  // namespace introspect::hooks

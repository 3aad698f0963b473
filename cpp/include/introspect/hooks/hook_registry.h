#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/hook_point.h"
#include "introspect/hooks/intervention.h"

namespace introspect::hooks {

/// Sees the activation at a site; returns its replacement (same shape and dtype), or nothing to leave it.
using Callback = std::function<std::optional<torch::Tensor>(const torch::Tensor& activation, Site site)>;

/// What is read and changed during a forward pass. A value: a pass never alters it, a copy is independent.
///
/// At one site interventions run first, then callbacks, each in the order of addition, so that a callback that
/// reads sees what the next layer will. Names are checked when they are added, before anything runs.
class INTROSPECT_EXPORT HookRegistry {
 public:
  explicit HookRegistry(HookPoints points);

  /// Adds a callback at a full hook name. Throws HookError, with the nearest names, for one that does not exist.
  void add(std::string_view name, Callback callback);

  /// Adds an intervention; one of strength zero is dropped. Throws as hooks::validate does.
  void add(const Intervention& intervention);

  /// True if nothing would be read or changed at any site.
  bool empty() const { return n_actions_ == 0; }

  /// True if something is read or changed at `site`.
  bool wants(Site site) const { return !table_[points_.index(site)].empty(); }

  /// Runs what stands at `site` on `x`, whose first position is number `offset` of its sequence.
  ///
  /// Throws HookError if a callback's replacement has another shape, dtype or device.
  torch::Tensor run(Site site, const torch::Tensor& x, int64_t offset) const;

 private:
  struct Action {
    std::shared_ptr<const Intervention> intervention;  // null for a callback
    Callback callback;
  };

  HookPoints points_;
  int64_t n_actions_ = 0;
  std::vector<std::vector<Action>> table_;  // by HookPoints::index
};

}  // namespace introspect::hooks

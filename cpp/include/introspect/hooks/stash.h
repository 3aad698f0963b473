#pragma once

#include <map>
#include <utility>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/hook_point.h"

namespace introspect::hooks {

/// What interventions of one pass have read at their sources, until they are applied at their points, in the same block
/// or in one above.
class INTROSPECT_EXPORT Stash {
 public:
  void put(Site site, torch::Tensor x) { activations_[{site.layer, site.point}] = std::move(x); }

  void merge(Stash other) { activations_.merge(other.activations_); }

  /// Throws HookError if this pass has not come by the site.
  const torch::Tensor& at(Site site) const;

 private:
  std::map<std::pair<int64_t, Point>, torch::Tensor> activations_;
};

}  // namespace introspect::hooks

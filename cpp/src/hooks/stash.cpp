#include "introspect/hooks/stash.h"

#include "introspect/core/check.h"

namespace introspect::hooks {

const torch::Tensor& Stash::at(Site site) const {
  const auto found = activations_.find({site.layer, site.point});
  check<HookError>(found != activations_.end(), "intervention: its source ", hook_name(site),
                   " must come before its point in the same pass, and this pass has not run it");
  return found->second;
}

}  // namespace introspect::hooks

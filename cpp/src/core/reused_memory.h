#pragma once

#include <torch/types.h>

namespace introspect {

/// at::empty for what a pass makes and drops again. 32 KiB and more on the CPU take what was given back last,
/// if it fits: pages that the system brings anew cost more than pointwise work on them, and have left the cache.
///
/// At most 64 MiB wait for their next use, in the whole process.
torch::Tensor reused_empty(at::IntArrayRef sizes, const torch::TensorOptions& options);

}  // namespace introspect

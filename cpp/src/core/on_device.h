#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

namespace introspect {

/// A tensor on a device, without waiting for what the device still has to do.
///
/// A copy from pageable memory has left it when the call returns (CUDA's rule), so that the tensor may be changed or freed
/// at once; from pinned memory it may not have, and is waited for.
inline torch::Tensor on_device(const torch::Tensor& t, torch::Device device) {
  if (t.device() == device) return t;
  return t.to(at::TensorOptions(device), /*non_blocking=*/t.is_cpu() && !t.is_pinned());
}

/// The same of integers that the host knows.
inline torch::Tensor on_device(const std::vector<int64_t>& list, torch::Device device) {
  return on_device(torch::tensor(list, torch::kLong), device);
}

}  // namespace introspect

#pragma once

#include <cstdint>

#include <torch/types.h>

namespace introspect::ops {

struct AdamOptions {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
};

/// One step of Adam (Kingma and Ba 2015, arXiv:1412.6980, as torch.optim.Adam) on `weight` and its moments in place, one
/// pass over each. `step` is 1 for the first; the gradient is times `scale`. All are of one dtype, float32 or float64.
void adam(const torch::Tensor& weight, const torch::Tensor& gradient, const torch::Tensor& first,
          const torch::Tensor& second, const AdamOptions& options, int64_t step, double scale = 1);

}  // namespace introspect::ops

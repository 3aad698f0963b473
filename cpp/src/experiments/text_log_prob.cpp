#include "experiments/text_log_prob.h"

#include <ATen/ATen.h>

namespace introspect::experiments {

double rest_log_prob(const models::Model& model, const std::vector<int64_t>& ids,
                     const torch::Tensor& resid_TD) {
  double out = 0.0;
  for (size_t t = 1; t < ids.size(); ++t) {
    const auto logits_V =
        model.readout(resid_TD[static_cast<int64_t>(t) - 1]).to(torch::kCPU, torch::kFloat64);
    out += (logits_V[ids[t]] - logits_V.logsumexp({0})).item<double>();
  }
  return out;
}

}  // namespace introspect::experiments

#include "introspect/models/finite.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "introspect/core/check.h"

namespace introspect::models {
namespace {

bool all_finite(const torch::Tensor& x) {
  return x.isfinite().all().item<bool>();
}

}  // namespace

bool are_finite(const torch::Tensor& logits) {
  if (logits.numel() == 0) return true;
  if (logits.numel() == logits.size(-1)) return std::isfinite(logits.max().item<double>());
  return all_finite(logits.amax({-1}));
}

int64_t first_not_finite(const Model& model, const cache::KVCache& cache) {
  const at::NoGradGuard no_grad;
  const int64_t n_layers = std::min(cache.shape().n_layers, model.cfg().n_layers);
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    const auto keys = cache.keys(layer), values = cache.values(layer);
    // The norm makes NaN of an infinite residual, and so of its keys and values; what else is not finite began here.
    if (keys.isnan().any().item<bool>() && values.isnan().any().item<bool>()) return layer - 1;
    if (!all_finite(keys) || !all_finite(values)) return layer;
  }
  return model.cfg().n_layers - 1;
}

int64_t first_not_finite(const Model& model, const torch::Tensor& tokens_BT, const ForwardOptions& options) {
  check<std::invalid_argument>(options.cache == nullptr, "first_not_finite: the pass must have no cache");
  const at::NoGradGuard no_grad;
  const auto is_finite_before = [&](int64_t layer) {
    auto pass = options;
    pass.stop_at_layer = layer;
    const auto resid_BTD = model.forward(tokens_BT, pass);
    if (!options.attention_mask.defined()) return all_finite(resid_BTD);
    return all_finite(resid_BTD.index({options.attention_mask.to(resid_BTD.device(), torch::kBool)}));
  };
  // What is not finite stays so in every later block.
  int64_t first = 0, last = model.cfg().n_layers;  // the answer + 1 lies between them
  while (first < last) {
    const auto middle = (first + last) / 2;
    if (is_finite_before(middle))
      first = middle + 1;
    else
      last = middle;
  }
  return first - 1;
}

void check_finite(std::string_view who, const Model& model, const torch::Tensor& logits,
                  const std::function<int64_t()>& first_block) {
  if (are_finite(logits)) [[likely]]
    return;
  const auto block = first_block();
  const auto where = block < 0 ? std::string("the embedding") : concat("block ", block);
  const auto remedy = model.dtype() == torch::kFloat16
                          ? "float16 ends at 65504: load the model in bfloat16 or float32 (dtype), or add "
                            "less to its residuals"
                          : "a weight, an added vector or a hook holds NaN or is too large: load the model "
                            "in bfloat16 or float32 "
                            "(dtype) from sound files, or steer with less strength";
  throw Error(concat(
      who, ": the logits are not finite (NaN or infinity); the first residual that is not comes out of ",
      where, ", in ", model.dtype(), ". ", remedy));
}

}  // namespace introspect::models

#include "introspect/steering/residual_norms.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include <torch/types.h>

#include "core/on_device.h"
#include "introspect/core/check.h"

namespace introspect::steering {
namespace {

std::vector<int64_t> layers_of(const models::Model& model, const ResidualNormOptions& options) {
  const auto n_layers = model.cfg().n_layers;
  auto layers = options.layers.value_or(std::vector<int64_t>());
  if (!options.layers)
    for (int64_t layer = 0; layer < n_layers; ++layer) layers.push_back(layer);
  check<std::invalid_argument>(!layers.empty(), "residual_norms: at least one layer is needed, got none");
  for (const auto layer : layers)
    check<std::out_of_range>(layer >= 0 && layer < n_layers, "residual_norms: layers must be 0 to ",
                             n_layers - 1, ", got ", layer);
  return layers;
}

/// Places in [B * T] of the positions that are asked for.
torch::Tensor places_of(const torch::Tensor& tokens, const ResidualNormOptions& options) {
  const auto& mask = options.attention_mask;
  std::vector<int64_t> out;
  for (int64_t row = 0; row < tokens.size(0); ++row) {
    const auto real = mask.defined() ? mask[row].to(torch::kCPU).nonzero().flatten()
                                     : torch::arange(tokens.size(1), torch::kInt64);
    const auto n = real.numel();
    const auto add = [&](int64_t position) {
      out.push_back(row * tokens.size(1) + real[position].item<int64_t>());
    };
    if (!options.positions)
      for (int64_t position = 0; position < n; ++position) add(position);
    for (const auto position : options.positions.value_or(std::vector<int64_t>())) {
      check<std::out_of_range>(position >= -n && position < n, "residual_norms: positions must be ", -n,
                               " to ", n - 1, " for row ", row, ", got ", position);
      add(position < 0 ? position + n : position);
    }
  }
  check<std::invalid_argument>(!out.empty(), "residual_norms: at least one position is needed, got none");
  return torch::tensor(out, torch::kInt64);
}

}  // namespace

double median_norm(const torch::Tensor& vectors) {
  check<ShapeError>(vectors.numel() > 0, "median_norm: at least one vector is needed, got ", vectors.sizes());
  const auto sorted = std::get<0>(vectors.to(torch::kCPU, torch::kFloat64).norm(2, -1).flatten().sort());
  const auto n = sorted.numel();
  if (!std::isfinite(sorted.sum().item<double>())) return std::nan("");
  return (sorted[(n - 1) / 2].item<double>() + sorted[n / 2].item<double>()) / 2;
}

std::map<int64_t, double> residual_norms(const models::Model& model, const torch::Tensor& tokens,
                                         const ResidualNormOptions& options) {
  const at::NoGradGuard no_grad;
  const auto& mask = options.attention_mask;
  check<ShapeError>(tokens.dim() == 2, "residual_norms: tokens must be [batch, pos], got ", tokens.sizes());
  check<ShapeError>(!mask.defined() || mask.sizes() == tokens.sizes(),
                    "residual_norms: attention_mask must be ", tokens.sizes(), ", got ", mask.sizes());
  const auto layers = layers_of(model, options);
  const auto places = places_of(tokens, options);
  std::map<int64_t, double> out;
  auto registry = model.make_hooks();
  for (const auto layer : layers)
    registry.observe(hooks::hook_name({hooks::Point::kResidPost, layer}),
                     [&](const torch::Tensor& x_BTD, hooks::Site site) {
                       const auto x_ND = x_BTD.flatten(0, 1);
                       out[site.layer] = median_norm(x_ND.index_select(0, on_device(places, x_ND.device())));
                     });
  models::ForwardOptions pass;
  pass.hooks = &registry;
  pass.attention_mask = mask;
  pass.logits_at = models::LogitsAt::kNone;
  pass.stop_at_layer = *std::max_element(layers.begin(), layers.end()) + 1;
  model.forward(tokens, pass);
  for (const auto& [layer, norm] : out)
    check<Error>(std::isfinite(norm), "residual_norms: the residual stream after block ", layer,
                 " is not finite in the model's dtype: load it in bfloat16 or float32");
  return out;
}

}  // namespace introspect::steering

#include "introspect/experiments/estimate.h"

#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include <torch/autograd.h>
#include <torch/types.h>

#include "introspect/core/check.h"
#include "introspect/steering/residual_norms.h"

#include "experiments/design.h"
#include "experiments/finite.h"

namespace introspect::experiments {
namespace {

/// What one question's two passes leave.
struct Slopes {
  double log_odds = 0.0;
  torch::Tensor gradient_LD;  // float64: of the log-odds by what is added to each block's output
  torch::Tensor norms_L;      // float64: median norms of the residual stream, see StrengthUnit::residual
};

/// The tokens before the injected ones, for any number of questions after them.
cache::KVCache prefill(const models::Model& model, const Ids& ids) {
  const at::NoGradGuard no_grad;
  auto cache = model.make_cache(1);
  if (ids.empty()) return cache;
  models::ForwardOptions pass;
  pass.cache = &cache;
  pass.logits_at = models::LogitsAt::kNone;
  model.forward(torch::tensor(ids, torch::kInt64).unsqueeze(0), pass);
  return cache;
}

/// One forward pass over the injected tokens and the question, and one backward pass.
///
/// What is differentiated by is an injection of zeros: its gradient is the sum over the positions that it is added to.
Slopes differentiate(const models::Model& model, const Design& design, const Scene& scene, const Ask& ask,
                     const cache::KVCache& before) {
  const at::AutoGradMode with_gradients(true);
  const auto n_layers = model.cfg().n_layers;
  const auto n_injected = static_cast<int64_t>(scene.injected.size());
  const auto wide = model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  hooks::Intervention added;
  added.first_position = scene.span_begin();
  if (!ask.keeps_steering) added.last_position = scene.span_end();
  std::vector<torch::Tensor> zeros;
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    zeros.push_back(torch::zeros({model.cfg().d_model}, torch::device(model.device()).dtype(wide)));
    added.values[layer] = zeros.back().requires_grad_();
  }

  auto registry = model.make_hooks();
  registry.add(added);
  auto norms_L = torch::zeros({n_layers}, torch::kFloat64);
  const int64_t skipped = scene.before.empty() && n_injected > 1 ? 1 : 0;  // as run_experiment does
  for (int64_t layer = 0; layer < n_layers; ++layer)
    registry.observe(hooks::hook_name({hooks::Point::kResidPost, layer}), [&](const torch::Tensor& x_BTD,
                                                                              hooks::Site site) {
      norms_L[site.layer] = steering::median_norm(x_BTD.detach().slice(1, skipped, n_injected));
    });

  auto ids = scene.injected;
  ids.insert(ids.end(), ask.after.begin(), ask.after.end());
  auto cache = before.fork();
  models::ForwardOptions pass;
  pass.cache = &cache;
  pass.hooks = &registry;
  pass.logits_at = models::LogitsAt::kLast;
  pass.vocab_ids = torch::tensor({design.yes_id, design.no_id}, torch::kInt64);
  const auto logits = model.forward(torch::tensor(ids, torch::kInt64).unsqueeze(0), pass).flatten();
  const auto log_odds = logits[0] - logits[1];
  const auto gradients = torch::autograd::grad({log_odds}, zeros);
  return {log_odds.item<double>(), torch::stack(gradients).to(torch::kCPU, torch::kFloat64), norms_L};
}

/// strength * gradient . direction at each block, in the unit asked for.
std::vector<double> parts(const Injection& injection, const Slopes& slopes, StrengthUnit unit) {
  std::vector<double> out(static_cast<size_t>(slopes.gradient_LD.size(0)), 0.0);
  for (const auto& [layer, direction] : injection.directions) {
    const auto direction_D = direction.to(torch::kCPU, torch::kFloat64);
    auto factor = injection.strength;
    const auto length = direction_D.norm().item<double>();
    if (unit == StrengthUnit::residual && length > 0) factor *= slopes.norms_L[layer].item<double>() / length;
    out[static_cast<size_t>(layer)] = factor * slopes.gradient_LD[layer].dot(direction_D).item<double>();
  }
  return out;
}

}  // namespace

std::vector<LayerEstimate> estimate_layers(const models::Model& model, const Protocol& protocol,
                                           const NamedVectors& vectors, const EstimateOptions& options) {
  ExperimentOptions experiment;
  experiment.strengths = options.strengths;
  experiment.controls = options.controls;
  experiment.layers = {LayerRange::blocks(0, model.cfg().n_layers - 1)};
  experiment.questions = options.questions;
  experiment.nulls = options.nulls;
  experiment.strength_unit = options.strength_unit;
  experiment.seed = options.seed;
  experiment = with_defaults(std::move(experiment));
  const auto design = make_design(model, protocol, vectors, experiment);

  std::vector<LayerEstimate> out;
  int64_t n_asks = 0, done = 0;
  for (const auto& scene : design.scenes) n_asks += static_cast<int64_t>(scene.asks.size());
  for (const auto& scene : design.scenes)
    check<ConfigError>(scene.is_whole() && protocol.inject == Inject::vector, "estimate_layers: protocol '",
                       protocol.name, "' must inject vectors into whole messages that are neighbours");
  for (const auto& scene : design.scenes) {
    const auto before = prefill(model, scene.before);
    for (const auto& ask : scene.asks) {
      report(options.progress, "estimates", done++, n_asks);
      const auto slopes = differentiate(model, design, scene, ask, before);
      if (!std::isfinite(slopes.log_odds)) throw_not_finite(model, "estimate_layers", protocol, scene, ask);
      for (const auto& injection : design.injections)
        out.push_back({injection.concept_name, injection.strength, ask.question, ask.question_kind,
                       injection.null_index, slopes.log_odds,
                       parts(injection, slopes, *experiment.strength_unit), ask.asked_in});
    }
  }
  report(options.progress, "estimates", n_asks, n_asks);
  return out;
}

}  // namespace introspect::experiments

#include "introspect/analysis/jacobian_lens.h"

#include <algorithm>
#include <stdexcept>

#include <ATen/ATen.h>
#include <torch/autograd.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/models/whole_weights.h"

#include "analysis/lens_texts.h"

namespace introspect::analysis {
namespace {

using hooks::Point;
using models::Model;

std::vector<int64_t> layers_of(const Model& model, const JacobianLensOptions& options) {
  const int64_t last = model.cfg().n_layers - 2;
  auto out = options.layers;
  for (int64_t layer = 0; options.layers.empty() && layer <= last; ++layer) out.push_back(layer);
  check<std::invalid_argument>(!out.empty(), "jacobian_lens: the model must have more than one layer");
  for (const auto layer : out)
    check<std::out_of_range>(layer >= 0 && layer <= last, "jacobian_lens: layers must be 0 to ", last,
                             ", got ", layer);
  std::ranges::sort(out);
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

/// Residuals [R, T, D] of R equal rows of one text after each layer, and after the last one, in one autograd graph.
std::vector<torch::Tensor> graph_of(const Model& model, const std::vector<int64_t>& tokens, int64_t rows,
                                    const std::vector<int64_t>& layers) {
  auto registry = model.make_hooks();
  const auto cache = std::make_shared<hooks::ActivationCache>();
  hooks::RecordOptions attached;
  attached.detach = false;
  // The graph begins at the first layer that is read, so that no weight need require a gradient.
  const auto begin = hooks::hook_name({Point::kResidPost, layers.front()});
  registry.add(begin, [](const torch::Tensor& x, hooks::Site) -> std::optional<torch::Tensor> {
    return x.detach().requires_grad_();
  });
  for (const auto layer : layers)
    registry.record(hooks::hook_name({Point::kResidPost, layer}), cache, attached);
  models::ForwardOptions pass;
  pass.hooks = &registry;
  pass.stop_at_layer = model.cfg().n_layers;
  const auto last = model.forward(torch::tensor(tokens, torch::kLong).unsqueeze(0).repeat({rows, 1}), pass);
  std::vector<torch::Tensor> out;
  for (const auto layer : layers) out.push_back(cache->at({Point::kResidPost, layer}));
  out.push_back(last);
  return out;
}

}  // namespace

Lens jacobian_lens(const Model& model, const std::vector<std::vector<int64_t>>& prompts,
                   const JacobianLensOptions& options) {
  const auto layers = layers_of(model, options);
  check<std::invalid_argument>(
      options.skip_first >= 0 && options.directions > 0,
      "jacobian_lens: skip_first must not be negative and directions be positive, got ", options.skip_first,
      " and ", options.directions);
  auto texts = prompts;
  const auto context = std::min(options.context, model.cfg().n_ctx);
  for (auto& text : texts)
    if (static_cast<int64_t>(text.size()) > context && context > 0) text.resize(static_cast<size_t>(context));
  pieces_of(model, texts, options.context, "jacobian_lens");
  for (size_t i = 0; i < texts.size(); ++i)
    check<std::invalid_argument>(static_cast<int64_t>(texts[i].size()) > options.skip_first + 1,
                                 "jacobian_lens: a prompt must have more than ", options.skip_first + 1,
                                 " tokens, of which the first ", options.skip_first,
                                 " and the last are left out, prompt ", i, " has ", texts[i].size());
  const auto D = model.cfg().d_model, first = options.skip_first;
  const auto R = std::min(options.directions, D);
  const auto like = at::device(model.device()).dtype(lens_dtype(model));
  const auto J_LDD = at::zeros({static_cast<int64_t>(layers.size()), D, D}, like);
  const auto total = static_cast<int64_t>(texts.size()) * D;
  models::whole_weights(model, "jacobian_lens");  // that they can be differentiated through
  const at::AutoGradMode with_gradients(true);
  for (size_t prompt = 0; prompt < texts.size(); ++prompt) {
    auto residuals = graph_of(model, texts[prompt], R, layers);
    const auto last = residuals.back();
    residuals.pop_back();
    const auto n = last.size(1) - 1 - first;
    for (int64_t d = 0; d < D; d += R) {
      report(options.progress, "Jacobians", static_cast<int64_t>(prompt) * D + d, total);
      auto direction = at::zeros_like(last);  // row r asks for output d + r at every position that counts
      const auto rows = std::min(R, D - d);
      for (int64_t r = 0; r < rows; ++r) direction[r].narrow(0, first, n).select(1, d + r).fill_(1);
      const auto gradients = torch::autograd::grad({last}, residuals, {direction}, /*retain_graph=*/true);
      for (size_t l = 0; l < layers.size(); ++l)
        J_LDD[static_cast<int64_t>(l)]
            .narrow(0, d, rows)
            .add_(gradients[l].narrow(0, 0, rows).narrow(1, first, n).to(like).mean({1}));
    }
  }
  report(options.progress, "Jacobians", total, total);
  LensOrigin origin{
      model.cfg().model_name,
      model.hash(),
      unembedding_hash(model),
      model.cfg().n_layers,
      D,
      nlohmann::json({{"n_prompts", texts.size()}, {"skip_first", first}, {"context", options.context}})
          .dump()};
  std::map<int64_t, Translator> translators;
  const auto means = (J_LDD.detach() / static_cast<double>(texts.size())).to(torch::kCPU);
  for (size_t l = 0; l < layers.size(); ++l)
    translators[layers[l]] = {means[static_cast<int64_t>(l)].clone(), {}};
  return {LensKind::jacobian, std::move(origin), std::move(translators)};
}

}  // namespace introspect::analysis

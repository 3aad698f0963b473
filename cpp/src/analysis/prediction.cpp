#include "introspect/analysis/prediction.h"

#include "introspect/core/check.h"

namespace introspect::analysis {

namespace {

using hooks::Point;
using models::Model;

bool has_mid(const Model& model) {
  return models::hook_points(model.cfg()).has({Point::kResidMid, 0});
}

}  // namespace

std::vector<std::string> prediction_points(const Model& model) {
  std::vector<std::string> names;
  for (int64_t layer = 0; layer < model.cfg().n_layers; ++layer) {
    names.push_back(hooks::hook_name({Point::kResidPre, layer}));
    if (has_mid(model)) names.push_back(hooks::hook_name({Point::kResidMid, layer}));
  }
  return names;
}

Prediction debug_prediction(const Model& model, const NamedActivations& activations, int64_t expected,
                            int64_t actual) {
  Prediction out;
  const auto pair = torch::tensor({expected, actual}, torch::kLong);
  out.exact = direct_logit_attribution(model, activations, pair.narrow(0, 0, 1).unsqueeze(0),
                                       pair.narrow(0, 1, 1).unsqueeze(0), Unit::kComponent);
  check<ShapeError>(out.exact.values.size(1) == 1, "debug_prediction: one text is required, got ",
                    out.exact.values.size(1));

  StackOptions whole;
  whole.layer = model.cfg().n_layers;
  const auto components = decompose_resid(model, activations, whole).components;  // [parts, 1, 1, D]
  const auto naive = model.readout(components, pair).flatten(0, -2);
  out.naive = naive.select(1, 0) - naive.select(1, 1);

  auto streams = accumulated_resid(model, activations, whole, has_mid(model));
  out.streams = std::move(streams.labels);
  const auto logits_SV = model.readout(streams.components).flatten(0, -2);
  out.logits = logits_SV.index_select(1, pair.to(logits_SV.device()));
  out.log_probs = out.logits - logits_SV.logsumexp({1}, /*keepdim=*/true);
  out.ranks = 1 + at::stack({(logits_SV > out.logits.narrow(1, 0, 1)).sum({1}),
                             (logits_SV > out.logits.narrow(1, 1, 1)).sum({1})},
                            1);
  const auto ahead = (out.logits.select(1, 0) >= out.logits.select(1, 1)).to(torch::kCPU).contiguous();
  if (!ahead[-1].item<bool>())
    for (int64_t s = ahead.size(0) - 1; s >= 0 && !out.turn; --s)
      if (ahead[s].item<bool>()) out.turn = s;
  return out;
}

}  // namespace introspect::analysis

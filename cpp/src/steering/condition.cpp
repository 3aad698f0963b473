#include "introspect/steering/condition.h"

#include <cmath>

#include <ATen/core/grad_mode.h>

#include "introspect/core/check.h"

namespace introspect::steering {

namespace {

torch::Tensor cosine(const torch::Tensor& a_BD, const torch::Tensor& b_BD) {
  return (a_BD * b_BD).sum(-1) / (a_BD.norm(2, -1) * b_BD.norm(2, -1));
}

/// The activation that a prompt is judged by, [B, D].
torch::Tensor summary(const torch::Tensor& resid_BTD, const torch::Tensor& mask_BT, bool last_position) {
  const int64_t T = resid_BTD.size(1);
  if (!mask_BT.defined()) return last_position ? resid_BTD.select(1, T - 1) : resid_BTD.mean(1);
  const auto mask = mask_BT.to(resid_BTD.device(), torch::kBool);
  if (!last_position) {
    const auto kept = resid_BTD.masked_fill(mask.logical_not().unsqueeze(-1), 0);
    return kept.sum(1) / mask.sum(1, /*keepdim=*/true);
  }
  const auto columns = at::arange(T, mask.options().dtype(torch::kLong));
  const auto last_B = at::where(mask, columns, at::full({}, -1, columns.options())).amax(1);
  return resid_BTD.gather(1, last_B.view({-1, 1, 1}).expand({-1, 1, resid_BTD.size(2)})).squeeze(1);
}

}  // namespace

Measure parse_measure(std::string_view name) {
  if (name == "cosine") return Measure::kCosine;
  if (name == "projection") return Measure::kProjection;
  if (name == "cast") return Measure::kCast;
  throw std::invalid_argument(
      concat("condition: the measure must be 'cosine', 'projection' or 'cast', got '", name, "'"));
}

void validate(const Condition& condition, const models::Model& model) {
  const auto& c = condition.direction;
  check<std::out_of_range>(condition.layer >= 0 && condition.layer < model.cfg().n_layers,
                           "condition: the layer must be 0 to ", model.cfg().n_layers - 1, ", got ",
                           condition.layer);
  check<ShapeError>(c.defined() && c.dim() == 1 && c.size(0) == model.cfg().d_model && c.is_floating_point(),
                    "condition: the direction must be float [", model.cfg().d_model, "], got ",
                    c.defined() ? c.sizes() : at::IntArrayRef{});
  check<std::invalid_argument>(at::isfinite(c).all().item<bool>() && c.ne(0).any().item<bool>(),
                               "condition: the direction must be finite and not zero");
  check<std::invalid_argument>(!std::isnan(condition.threshold), "condition: the threshold must not be NaN");
}

torch::Tensor measure(const models::Model& model, const Condition& condition, const torch::Tensor& tokens_BT,
                      const torch::Tensor& mask_BT) {
  validate(condition, model);
  const at::NoGradGuard no_grad;
  models::ForwardOptions options;
  options.attention_mask = mask_BT;
  options.stop_at_layer = condition.layer + 1;
  const auto resid_BTD = model.forward(tokens_BT, options).to(torch::kFloat64);
  const auto h_BD = summary(resid_BTD, mask_BT, condition.last_position);
  const auto c_D = condition.direction.to(h_BD.device(), torch::kFloat64);
  switch (condition.measure) {
    case Measure::kCosine:
      return cosine(h_BD, c_D).cpu();
    case Measure::kProjection:
      return h_BD.matmul(c_D / c_D.norm()).cpu();
    case Measure::kCast:
      return cosine(h_BD, at::tanh(h_BD.matmul(c_D).unsqueeze(1) * c_D / c_D.dot(c_D))).cpu();
  }
  throw Error("condition: unknown measure");
}

std::vector<int64_t> rows_where(const models::Model& model, const Condition& condition,
                                const torch::Tensor& tokens_BT, const torch::Tensor& mask_BT) {
  const auto measured_B = measure(model, condition, tokens_BT, mask_BT);
  const auto holds_B = condition.above ? measured_B > condition.threshold : measured_B < condition.threshold;
  const auto rows = holds_B.nonzero().squeeze(1).contiguous();
  return {rows.const_data_ptr<int64_t>(), rows.const_data_ptr<int64_t>() + rows.size(0)};
}

}  // namespace introspect::steering

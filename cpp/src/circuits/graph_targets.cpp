#include "circuits/graph_targets.h"

#include <cmath>
#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

namespace introspect::circuits {

std::string text_of(const models::Model& model, int64_t id) {
  if (!model.has_tokenizer()) return std::to_string(id);
  const auto text = model.tokenizer().decode({id});
  const bool begins_word = model.tokenizer().id_to_token(id).rfind("\u2581", 0) == 0;
  return begins_word && text.rfind(' ', 0) != 0 ? " " + text : text;
}

namespace {

Targets chosen_logits(const FrozenModel& frozen, const AttributeOptions& options) {
  const auto& model = frozen.model();
  const int64_t T = frozen.n_tokens(), L = frozen.n_layers();
  const auto last_D = frozen.last_TD()[T - 1];
  const auto p_V = model.readout(last_D.to(model.dtype())).to(torch::kFloat64).softmax(-1).cpu();
  const auto [sorted, order] = p_V.sort(/*stable=*/true, -1, /*descending=*/true);
  const auto mass = sorted.cumsum(0);
  int64_t n = 1;
  while (n < options.max_logits && n < p_V.size(0) && mass[n - 1].item<double>() < options.logit_mass) ++n;

  const auto directions_nD = logit_directions(model, order.narrow(0, 0, n));
  const auto position = at::tensor({T - 1}, at::kLong);
  const auto bias_D = frozen.final_bias_D();
  Targets out;
  for (int64_t i = 0; i < n; ++i) {
    const auto id = order[i].item<int64_t>();
    const auto u_D = directions_nD[i];
    RowTarget row{RowTarget::Reads::stream_after, L - 1, T - 1,
                  frozen.final_gradient(u_D.unsqueeze(0), position)[0], 0};
    if (bias_D.defined()) row.constant = at::dot(u_D, bias_D).item<double>();
    out.rows.push_back(row);
    out.nodes.push_back({GraphNodeKind::logit, L, T - 1, id, sorted[i].item<double>(), text_of(model, id)});
  }
  return out;
}

Targets given_targets(const FrozenModel& frozen, const std::vector<GraphTarget>& given) {
  const int64_t T = frozen.n_tokens(), L = frozen.n_layers(), D = frozen.embedded_TD().size(1);
  Targets out;
  for (const auto& target : given) {
    const auto who = concat("attribute: target '", target.name, "'");
    check<ShapeError>(
        target.direction_D.defined() && target.direction_D.dim() == 1 && target.direction_D.size(0) == D, who,
        " must have a direction [", D, "]");
    check<std::invalid_argument>(at::isfinite(target.direction_D).all().item<bool>() && target.weight > 0 &&
                                     std::isfinite(target.weight),
                                 who, " must have a finite direction and a weight above 0");
    const int64_t position = target.position < 0 ? T + target.position : target.position;
    check<std::out_of_range>(position >= 0 && position < T, who, " must be at a position of the ", T,
                             " tokens, got ", target.position);
    const int64_t layer = target.layer.value_or(L - 1);
    check<std::out_of_range>(layer >= 0 && layer < L, who, " must be after a block 0 to ", L - 1, ", got ",
                             layer);
    auto direction_D = target.direction_D.to(frozen.embedded_TD().options());
    double constant = 0;
    if (!target.layer) {
      const auto bias_D = frozen.final_bias_D();
      if (bias_D.defined()) constant = at::dot(direction_D, bias_D).item<double>();
      direction_D = frozen.final_gradient(direction_D.unsqueeze(0), at::tensor({position}, at::kLong))[0];
    }
    out.rows.push_back({RowTarget::Reads::stream_after, layer, position, direction_D, constant});
    out.nodes.push_back({GraphNodeKind::logit, L, position, static_cast<int64_t>(out.nodes.size()),
                         target.weight, target.name});
  }
  return out;
}

}  // namespace

Targets targets_of(const FrozenModel& frozen, const AttributeOptions& options) {
  return options.targets.empty() ? chosen_logits(frozen, options) : given_targets(frozen, options.targets);
}

}  // namespace introspect::circuits

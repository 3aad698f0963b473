#include "introspect/analysis/attribution.h"

#include "analysis/frozen_norm.h"
#include "introspect/core/check.h"

namespace introspect::analysis {

namespace {

using hooks::Point;
using models::Model;

hooks::Site final_residual(const Model& model) {
  return {Point::kResidPost, model.cfg().n_layers - 1};
}

/// One row of the batch of every activation.
NamedActivations row_of(const NamedActivations& activations, int64_t row) {
  NamedActivations out;
  for (const auto& [name, x] : activations) out[name] = x.narrow(0, row, 1);
  return out;
}

/// The rows of attention and MLP of each block summed: after n_first rows they alternate.
Stack by_layer(const Stack& by_component, int64_t n_first) {
  const auto& x = by_component.components;
  const auto rest = x.narrow(0, n_first, x.size(0) - n_first);
  Stack out{at::cat({x.narrow(0, 0, n_first), rest.unflatten(0, {-1, 2}).sum(1)}),
            {by_component.labels.begin(), by_component.labels.begin() + n_first}};
  for (int64_t layer = 0; layer < rest.size(0) / 2; ++layer) out.labels.push_back(concat(layer, "_block"));
  return out;
}

/// [parts, 1, 1, n]: the parts of one row's residual through the final norm, onto the columns of `options.projection`.
Stack decompose(const Model& model, const NamedActivations& activations, const StackOptions& options,
                Unit unit) {
  switch (unit) {
    case Unit::kLayer:
      return by_layer(decompose_resid(model, activations, options), model.weights().W_pos.defined() ? 2 : 1);
    case Unit::kComponent:
      return decompose_resid(model, activations, options);
    case Unit::kHead:
      return full_resid_decomposition(model, activations, options, /*expand_neurons=*/false);
    case Unit::kNeuron:
      return full_resid_decomposition(model, activations, options, /*expand_neurons=*/true);
  }
  return {};
}

void check_tokens(const Model& model, const torch::Tensor& tokens, const torch::Tensor& wrong, int64_t B) {
  const int64_t V = model.cfg().d_vocab;
  check<ShapeError>(tokens.dim() == 2 && tokens.size(0) == B && tokens.size(1) > 0,
                    "direct_logit_attribution: tokens must be int64 [", B, ", n], got ", tokens.sizes());
  check<ShapeError>(!wrong.defined() || wrong.sizes() == tokens.sizes(),
                    "direct_logit_attribution: wrong must be as the tokens are, ", tokens.sizes(), ", got ",
                    wrong.defined() ? wrong.sizes() : at::IntArrayRef{});
  for (const auto& ids : {tokens, wrong})
    check<std::out_of_range>(
        !ids.defined() || (ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < V),
        "direct_logit_attribution: tokens must be 0 to ", V - 1);
}

}  // namespace

std::vector<std::string> attribution_points(const Model& model, Unit unit) {
  const auto points = models::hook_points(model.cfg());
  std::vector<std::string> names;
  const auto add = [&](Point point, int64_t layer = -1) {
    if (points.has({point, layer})) names.push_back(hooks::hook_name({point, layer}));
  };
  const bool heads = unit == Unit::kHead || unit == Unit::kNeuron, neurons = unit == Unit::kNeuron;
  check<ConfigError>(
      !neurons || !model.cfg().is_mixture(),
      "direct_logit_attribution: neurons of a mixture of experts are not taken apart: unit must be layer, "
      "component or head");
  add(Point::kEmbed);
  add(Point::kPosEmbed);
  for (int64_t layer = 0; layer < model.cfg().n_layers; ++layer) {
    add(heads ? Point::kZ : Point::kAttnOut, layer);
    if (heads) add(Point::kLn1PostScale, layer);
    add(neurons ? Point::kMlpPost : Point::kMlpOut, layer);
    if (neurons) add(Point::kLn2PostScale, layer);
  }
  names.push_back(hooks::hook_name(final_residual(model)));
  return names;
}

Attribution direct_logit_attribution(const Model& model, const NamedActivations& activations,
                                     const torch::Tensor& tokens, const torch::Tensor& wrong, Unit unit) {
  const auto name = hooks::hook_name(final_residual(model));
  const auto found = activations.find(name);
  check<HookError>(found != activations.end(), "direct_logit_attribution: '", name,
                   "' is needed and was not cached");
  const auto resid_B1D = wide(found->second);
  check<ShapeError>(resid_B1D.dim() == 3 && resid_B1D.size(1) == 1,
                    "direct_logit_attribution: activations must be of one position, [batch, 1, ...], got ",
                    resid_B1D.sizes());
  const int64_t B = resid_B1D.size(0), L = model.cfg().n_layers;
  check_tokens(model, tokens, wrong, B);

  const auto& weights = model.weights();
  const auto& norm = weights.ln_final;
  const auto rows_of_tokens = [&](const auto& choose, int64_t row) {  // [n, ...], less those of `wrong`
    const auto pick = [&](const torch::Tensor& ids) {
      return wide(choose(ids[row].to(model.device()))).to(resid_B1D.options());
    };
    return wrong.defined() ? pick(tokens) - pick(wrong) : pick(tokens);
  };
  const auto rows_of_W_U = [&](const torch::Tensor& ids) {
    return weights.W_U.gather(ids, weights.W_U.wide_dtype());
  };
  const auto rows_of_b_U = [&](const torch::Tensor& ids) { return weights.b_U.index_select(0, ids); };
  auto given = activations;
  given[hooks::hook_name({Point::kLnFinalScale})] = wide_scale(norm, resid_B1D);

  Attribution out;
  std::vector<torch::Tensor> values_Pn, logits_n;
  for (int64_t row = 0; row < B; ++row) {
    StackOptions options;
    options.layer = L;
    options.apply_ln = true;
    options.projection = rows_of_tokens(rows_of_W_U, row).t();
    const auto parts = decompose(model, row_of(given, row), options, unit);
    const auto whole_1D = undivided(norm, resid_B1D[row]) / wide_scale(norm, resid_B1D[row]);
    auto logit_n = at::matmul(whole_1D, options.projection).squeeze(0);
    out.labels = parts.labels;
    const auto parts_Pn = wide(parts.components).flatten(1, 2).squeeze(1);
    std::vector<torch::Tensor> all{parts_Pn};
    const auto add = [&](const char* label, const torch::Tensor& value_n) {
      all.push_back(value_n.unsqueeze(0));
      out.labels.emplace_back(label);
    };
    const auto remainder_n = logit_n - parts_Pn.sum({0});
    const auto add_bias = [&](const char* label, const torch::Tensor& value_n) {
      add(label, value_n);
      logit_n = logit_n + value_n;
    };
    if (norm.bias.defined())
      add_bias("ln_final.b", at::matmul(wide(norm.bias).to(resid_B1D.options()), options.projection));
    if (weights.b_U.defined()) add_bias("b_U", rows_of_tokens(rows_of_b_U, row));
    add("remainder", remainder_n);
    values_Pn.push_back(at::cat(all));
    logits_n.push_back(logit_n);
  }
  out.values = at::stack(values_Pn, 1);
  out.logits = at::stack(logits_n);
  return out;
}

}  // namespace introspect::analysis

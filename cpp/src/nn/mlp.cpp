#include "introspect/nn/mlp.h"

#include <stdexcept>
#include <utility>

#include "core/stages.h"
#include "introspect/core/check.h"
#include "introspect/ops/gated_mlp.h"

namespace introspect::nn {

using hooks::Point;

namespace {

void check_weights(const MlpWeights& weights) {
  const int64_t M = weights.out.n_in();
  check<ShapeError>(weights.in.n_out() == 2 * M || weights.in.n_out() == M, "Mlp: W_in must have ", 2 * M,
                    " rows with a gate and ", M, " without, got ", weights.in.n_out());
}

/// `hidden` [..., M or 2 M] is read, [..., M] written.
StageWork activation_work(const torch::Tensor& hidden, int64_t M) {
  const auto bytes = static_cast<double>(hidden.nbytes());
  return {0, bytes + bytes * static_cast<double>(M) / static_cast<double>(hidden.size(-1))};
}

/// A product of an MLP's, in its stage.
torch::Tensor product(const Linear& linear, const torch::Tensor& x) {
  const InStage stage(Stage::kMlpProducts);
  return linear.forward(x);
}

/// What an MLP's output matrix reads, of what its input matrix makes.
torch::Tensor activated(ops::Activation activation, const torch::Tensor& hidden, int64_t M) {
  const InStage stage(Stage::kActivation);
  stage.count([&] { return activation_work(hidden, M); });
  if (hidden.size(-1) == M) return ops::activate(activation, hidden);
  return ops::gated(activation, hidden.narrow(-1, 0, M), hidden.narrow(-1, M, M));
}

/// True for a dense weight and its bias, without more.
bool is_plain(const Linear& linear) {
  const auto& bias = linear.bias();
  return !linear.is_quantised() &&
         linear.numel() == linear.n_out() * linear.n_in() + (bias.defined() ? bias.numel() : 0);
}

/// The whole MLP where one kernel has it and nobody looks inside: the same bits. Undefined: go step by step.
torch::Tensor in_one_step(const MlpWeights& weights, ops::Activation activation, const torch::Tensor& x_BTD,
                          const Context& ctx) {
  const auto& [in, out] = weights;
  const bool seen =
      ctx.wants(Point::kMlpPre) || ctx.wants(Point::kMlpPreLinear) || ctx.wants(Point::kMlpPost);
  if (seen || activation != ops::Activation::kSilu || !is_plain(in) || !is_plain(out)) return {};
  const auto W_in = in.dense(), W_out = out.dense();
  if (!ops::has_gated_mlp(x_BTD, W_in, in.bias(), W_out, out.bias())) return {};
  const InStage stage(Stage::kMlpProducts);
  auto y_BTD = ops::gated_mlp(x_BTD, W_in, in.bias(), W_out, out.bias());
  stage.count([&] {
    const auto rows = static_cast<double>(x_BTD.numel() / x_BTD.size(-1));
    return StageWork{2 * rows * static_cast<double>(W_in.numel() + W_out.numel()),
                     static_cast<double>(in.nbytes() + out.nbytes() + x_BTD.nbytes() + y_BTD.nbytes())};
  });
  return y_BTD;
}

constexpr const char* kNoMatrices =
    "mlp: the block is a mixture of experts, which has no one pair of matrices: what reads or edits an MLP's "
    "neurons is "
    "not possible here";

}  // namespace

Mlp::Mlp(MlpWeights weights, ops::Activation activation)
    : weights_(std::move(weights)), activation_(activation) {
  check_weights(weights_);
}

Mlp::Mlp(MixtureWeights weights, MixtureOptions options, ops::Activation activation)
    : mixture_(std::move(weights)), options_(options), activation_(activation) {
  const auto n = static_cast<int64_t>(mixture_.experts.size());
  check<ShapeError>(n > 0 && mixture_.router.n_out() == n,
                    "Mlp: a router must have a row for each expert, got ", mixture_.router.n_out(), " for ",
                    n);
  check<ShapeError>(options.experts_per_token > 0 && options.experts_per_token <= n,
                    "Mlp: a router must choose from 1 to ", n, " experts, got ", options.experts_per_token);
  for (const auto& expert : mixture_.experts) {
    check_weights(expert);
    check<ShapeError>(expert.in.n_out() == first().in.n_out() && expert.out.n_in() == d_mlp() &&
                          expert.in.n_in() == mixture_.router.n_in() &&
                          expert.out.n_out() == first().out.n_out(),
                      "Mlp: experts must be of equal shapes");
  }
}

const MlpWeights& Mlp::weights() const {
  check<ConfigError>(!is_mixture(), kNoMatrices);
  return weights_;
}

MlpWeights& Mlp::weights() {
  check<ConfigError>(!is_mixture(), kNoMatrices);
  return weights_;
}

std::vector<Linear*> Mlp::readers() {
  if (!is_mixture()) return {&weights_.in};
  std::vector<Linear*> out = {&mixture_.router};
  for (auto& expert : mixture_.experts) out.push_back(&expert.in);
  return out;
}

std::vector<Linear*> Mlp::writers() {
  if (!is_mixture()) return {&weights_.out};
  std::vector<Linear*> out;
  for (auto& expert : mixture_.experts) out.push_back(&expert.out);
  return out;
}

torch::Tensor Mlp::forward(const torch::Tensor& x_BTD, const Context& ctx) const {
  if (is_mixture()) return mix(x_BTD, ctx);
  if (auto y_BTD = in_one_step(weights_, activation_, x_BTD, ctx); y_BTD.defined()) return y_BTD;
  const int64_t M = d_mlp();
  const auto in = product(weights_.in, x_BTD);
  torch::Tensor post_BTM;
  if (gated()) {
    const auto pre_BTM = ctx.hook(Point::kMlpPre, in.narrow(2, 0, M));
    const auto pre_linear_BTM = ctx.hook(Point::kMlpPreLinear, in.narrow(2, M, M));
    const InStage stage(Stage::kActivation);
    stage.count([&] { return activation_work(in, M); });
    post_BTM = ops::gated(activation_, pre_BTM, pre_linear_BTM);
  } else {
    post_BTM = activated(activation_, ctx.hook(Point::kMlpPre, in), M);
  }
  return product(weights_.out, ctx.hook(Point::kMlpPost, post_BTM));
}

torch::Tensor Mlp::mix(const torch::Tensor& x_BTD, const Context& ctx) const {
  const int64_t E = static_cast<int64_t>(mixture_.experts.size()), k = options_.experts_per_token;
  const auto dtype = x_BTD.scalar_type();
  const auto wide = dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto probabilities_BTE =
      ctx.hook(Point::kExpertWeights, at::softmax(product(mixture_.router, x_BTD), -1, wide));
  const auto chosen_BTk = std::get<1>(at::topk(probabilities_BTE.detach(), k, -1));
  const auto indices_BTk = ctx.hook(Point::kExpertIndices, chosen_BTk);
  if (!indices_BTk.is_same(chosen_BTk) && indices_BTk.numel() > 0) {
    const auto [low, high] = at::aminmax(indices_BTk);
    check<std::out_of_range>(low.item<int64_t>() >= 0 && high.item<int64_t>() < E, "block ", ctx.layer,
                             ": mlp.hook_expert_indices must be 0 to ", E - 1, ", got ", low.item<int64_t>(),
                             " to ", high.item<int64_t>());
  }
  auto weights_BTk = probabilities_BTE.gather(-1, indices_BTk);
  if (options_.norm_topk_prob) weights_BTk = weights_BTk / weights_BTk.sum({-1}, /*keepdim=*/true);

  // A pair is a token and one of its experts; those of one expert stand together, in the order of the tokens.
  const auto experts_P = indices_BTk.flatten();
  const auto order_P = std::get<1>(at::sort(experts_P, /*stable=*/true, /*dim=*/0, /*descending=*/false));
  const auto counts_E = at::zeros({E}, experts_P.options())
                            .scatter_add_(0, experts_P, at::ones_like(experts_P))
                            .to(torch::kCPU);
  const auto tokens_P = order_P.div(k, "floor");
  const auto weights_P1 = weights_BTk.to(dtype).flatten().unsqueeze(1).index_select(0, order_P);
  const auto x_ND = x_BTD.flatten(0, 1);
  auto out_ND = at::zeros({x_ND.size(0), first().out.n_out()}, x_ND.options());
  int64_t done = 0;
  for (int64_t e = 0; e < E; ++e) {
    const int64_t n = counts_E.const_data_ptr<int64_t>()[e];
    if (n == 0) continue;
    const auto& [in, out] = mixture_.experts[static_cast<size_t>(e)];
    const auto tokens_n = tokens_P.narrow(0, done, n);
    const auto hidden = product(in, x_ND.index_select(0, tokens_n));
    const auto y_nD = product(out, activated(activation_, hidden, d_mlp())) * weights_P1.narrow(0, done, n);
    out_ND = out_ND.index_add(0, tokens_n, y_nD);
    done += n;
  }
  return out_ND.view({x_BTD.size(0), x_BTD.size(1), out_ND.size(1)});
}

}  // namespace introspect::nn

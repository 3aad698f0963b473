#include <catch2/catch.hpp>

#include "introspect/analysis/composition.h"
#include "introspect/analysis/residual_stream.h"
#include "introspect/core/error.h"
#include "introspect/hooks/activation_cache.h"
#include "introspect/models/process_weights.h"
#include "introspect/models/stacked_weights.h"

using namespace introspect;
using analysis::NamedActivations;

namespace {

torch::Tensor random(at::IntArrayRef sizes) {
  return at::randn(sizes, at::dtype(torch::kFloat64));
}

nn::Norm layer_norm(int64_t D, hooks::Point scale, hooks::Point normalized) {
  return {.weight = random({D}),
          .bias = random({D}),
          .kind = nn::NormKind::kLayer,
          .scale_point = scale,
          .normalized_point = normalized};
}

/// Two blocks as GPT-2's: learned positions, LayerNorm, biases everywhere, an MLP without a gate.
models::Model tiny_model() {
  at::manual_seed(0);
  constexpr int64_t L = 2, D = 8, H = 2, K = 3, M = 5, V = 11;
  models::Config cfg;
  cfg.n_layers = L, cfg.d_model = D, cfg.n_heads = cfg.n_key_value_heads = H, cfg.d_head = K;
  cfg.d_mlp = M, cfg.d_vocab = V, cfg.n_ctx = 16;
  cfg.act_fn = "gelu_new", cfg.gated_mlp = false, cfg.normalization_type = "LN";
  cfg.positional_embedding_type = "standard", cfg.attn_scale = 2;
  cfg.qkv_bias = cfg.attn_out_bias = cfg.mlp_bias = true;
  models::Weights weights;
  weights.W_E = nn::Linear(random({V, D}));
  weights.W_pos = random({16, D});
  weights.W_U = nn::Linear(random({V, D}));
  weights.ln_final = layer_norm(D, hooks::Point::kLnFinalScale, hooks::Point::kLnFinalNormalized);
  for (int64_t layer = 0; layer < L; ++layer)
    weights.blocks.emplace_back(nn::BlockParts{
        .ln1 = layer_norm(D, hooks::Point::kLn1Scale, hooks::Point::kLn1Normalized),
        .attn = nn::Attention({.QKV = nn::Linear{random({3 * H * K, D}), random({3 * H * K})},
                               .O = nn::Linear{random({D, H * K}), random({D})}},
                              {.n_heads = H, .n_key_value_heads = H, .d_head = K, .score_divisor = 2}),
        .ln1_post = {},
        .ln2 = layer_norm(D, hooks::Point::kLn2Scale, hooks::Point::kLn2Normalized),
        .mlp = nn::Mlp(
            {.in = nn::Linear{random({M, D}), random({M})}, .out = nn::Linear{random({D, M}), random({D})}},
            ops::Activation::kGeluNew),
        .ln2_post = {}});
  return {cfg, std::move(weights), std::nullopt, std::nullopt, "hash"};
}

struct Run {
  models::Model model = tiny_model();
  torch::Tensor tokens = at::arange(6, torch::kLong).view({2, 3});
  torch::Tensor logits;
  NamedActivations activations;

  Run() {
    auto hooks = model.make_hooks();
    const auto cache = std::make_shared<hooks::ActivationCache>();
    for (const auto& name : hooks.points().names()) hooks.record(name, cache);
    models::ForwardOptions options;
    options.hooks = &hooks;
    logits = model.forward(tokens, options);
    const auto items = cache->items();
    activations = {items.begin(), items.end()};
  }
};

bool close(const torch::Tensor& a, const torch::Tensor& b) {
  return at::allclose(a, b, 0, 1e-11);
}

}  // namespace

TEST_CASE("every component of a recorded pass sums to the stream, and its attributions to the logits",
          "[analysis]") {
  const Run run;
  analysis::StackOptions options{.layer = 2};
  const auto stack = analysis::full_resid_decomposition(run.model, run.activations, options);
  REQUIRE(stack.components.size(0) == 2 * 2 + 2 * 5 + 3);
  REQUIRE(stack.labels.size() == 17);
  REQUIRE((stack.labels.front() == "L0H0" && stack.labels.back() == "bias"));
  REQUIRE(close(stack.components.sum({0}), run.activations.at("blocks.1.hook_resid_post")));

  const auto attributions = analysis::logit_attributions(
      run.model, stack.components, run.activations.at("ln_final.hook_scale"), run.tokens);
  const auto constant = at::mv(run.model.weights().W_U.dense(), run.model.weights().ln_final.bias);
  const auto logits = run.logits.gather(2, run.tokens.unsqueeze(2)).squeeze(2);
  REQUIRE(close(attributions.sum({0}) + constant.index({run.tokens}), logits));
}

TEST_CASE("a stack at some positions is that part of the whole", "[analysis]") {
  const Run run;
  analysis::StackOptions options{.layer = 1, .mlp_input = true, .apply_ln = true};
  const auto whole = analysis::decompose_resid(run.model, run.activations, options).components;
  options.positions = at::tensor({2, 0}, torch::kLong);
  const auto some = analysis::decompose_resid(run.model, run.activations, options).components;
  REQUIRE(close(some, whole.index_select(2, options.positions)));
}

TEST_CASE("what is needed and not there is named before anything is made", "[analysis]") {
  using Catch::Matchers::Contains;
  Run run;
  run.activations.erase("blocks.1.attn.hook_z");
  REQUIRE_THROWS_AS(analysis::stack_head_results(run.model, run.activations, {.layer = 2}), HookError);
  REQUIRE_THROWS_WITH(analysis::stack_head_results(run.model, run.activations, {.layer = 2}),
                      Contains("blocks.1.attn.hook_z"));
  REQUIRE_THROWS_AS(analysis::decompose_resid(run.model, run.activations, {.layer = 3}), std::out_of_range);
}

TEST_CASE("a processed model computes the same, and its heads compose as their products do", "[analysis]") {
  const Run run;
  const auto folded = models::processed(run.model, {.fold_ln = true,
                                                    .center_writing_weights = true,
                                                    .fold_value_biases = true,
                                                    .refactor_factored_attn_matrices = true});
  REQUIRE(close(folded->forward(run.tokens), run.logits));
  const auto only_factors = models::processed(run.model, {.refactor_factored_attn_matrices = true});
  const auto mode = analysis::Composition::kV;  // no biases in it: factors change, products and scores do not
  REQUIRE(close(analysis::composition_scores(*only_factors, mode),
                analysis::composition_scores(run.model, mode)));
  REQUIRE_FALSE(at::allclose(models::weight(*only_factors, "blocks.1.attn.W_V"),
                             models::weight(run.model, "blocks.1.attn.W_V")));
}

#include "introspect/models/process_weights.h"

#include <tuple>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/models/whole_weights.h"

namespace introspect::models {

namespace {

void check_options(const Config& cfg, const ProcessOptions& options) {
  const auto must = [](bool ok, const char* option, const char* why) {
    check<ConfigError>(ok, "processed: ", option, " is not possible here: ", why);
  };
  if (options.center_writing_weights) {
    must(cfg.normalization_type == "LN", "center_writing_weights", "only LayerNorm subtracts the mean");
    must(!cfg.norms_output(), "center_writing_weights",
         "what layers write passes a norm, whose output has a mean again");
  }
  if (options.center_unembed)
    must(cfg.output_logits_soft_cap == 0, "center_unembed",
         "a soft cap on the logits is not indifferent to a constant");
  if (options.refactor_factored_attn_matrices) {
    must(cfg.positional_embedding_type != "rotary", "refactor_factored_attn_matrices",
         "with rotary positions W_Q W_K^T is another matrix for each distance");
    must(!cfg.use_qk_norm, "refactor_factored_attn_matrices", "queries and keys pass a norm");
    must(cfg.n_heads == cfg.n_key_value_heads, "refactor_factored_attn_matrices",
         "query heads share their keys");
  }
}

/// Float32, or float64 for float64: what weights are computed in before they are rounded again.
torch::Tensor wide(const torch::Tensor& x) {
  return x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32);
}

/// a + b, where an undefined tensor is zero.
torch::Tensor plus(const torch::Tensor& a, const torch::Tensor& b) {
  return a.defined() ? wide(a) + b : b;
}

torch::Tensor without_mean(const torch::Tensor& x, int64_t dim) {
  return x - x.mean({dim}, /*keepdim=*/true);
}

/// The weight and bias of a norm, moved into the product that reads its output.
void fold(const nn::Norm& norm, nn::Linear& linear) {
  if (norm.is_none()) return;
  const auto dtype = linear.dtype();
  auto W = wide(linear.dense()), b = linear.bias();
  if (norm.bias.defined()) b = plus(b, at::mv(W, wide(norm.bias))).to(dtype);
  W = W * wide(norm.weight);
  if (norm.kind == nn::NormKind::kLayer) W = without_mean(W, 1);
  linear = nn::Linear(W.to(dtype), b);
}

void make_neutral(nn::Norm& norm) {
  if (norm.is_none()) return;
  norm.weight = at::ones_like(norm.weight);
  if (norm.bias.defined()) norm.bias = at::zeros_like(norm.bias);
}

/// Replaces each block by one of edited parts.
template <typename Edit>
void edit_blocks(Weights& weights, const Edit& edit) {
  for (auto& block : weights.blocks) {
    auto parts = block.parts();
    edit(parts, parts.attn.weights());
    block = nn::Block(std::move(parts));
  }
}

void fold_norms(Weights& weights) {
  edit_blocks(weights, [](nn::BlockParts& parts, nn::AttentionWeights& attn) {
    fold(parts.ln1, attn.QKV);
    make_neutral(parts.ln1);
    for (auto* reading : parts.mlp.readers()) fold(parts.ln2, *reading);
    make_neutral(parts.ln2);
  });
  auto unembed = weights.W_U.with_bias(weights.b_U);
  fold(weights.ln_final, unembed);
  weights.b_U = unembed.bias();
  weights.W_U = unembed.with_bias({});
  make_neutral(weights.ln_final);
}

void center_writing(Weights& weights) {
  const auto centred = [](const torch::Tensor& x, int64_t dim) {
    return x.defined() ? without_mean(wide(x), dim).to(x.scalar_type()) : x;
  };
  weights.W_E = nn::Linear(centred(weights.W_E.dense(), 1));
  weights.W_pos = centred(weights.W_pos, 1);
  edit_blocks(weights, [&](nn::BlockParts& parts, nn::AttentionWeights& attn) {
    auto all = parts.mlp.writers();
    all.push_back(&attn.O);
    for (auto* writing : all)
      *writing = nn::Linear(centred(writing->dense(), 0), centred(writing->bias(), 0));
  });
}

void center_unembedding(Weights& weights) {
  const auto dtype = weights.W_U.dtype();
  weights.W_U = nn::Linear(without_mean(wide(weights.W_U.dense()), 0).to(dtype));
  if (weights.b_U.defined()) weights.b_U = without_mean(wide(weights.b_U), 0).to(dtype);
}

/// b_O + W_O b_V with the biases of a group's values for each of its query heads; the value biases become zero.
void fold_value_bias(nn::AttentionWeights& attn, const nn::AttentionOptions& options) {
  if (!attn.QKV.bias().defined()) return;
  const int64_t H = options.n_heads, G = options.n_key_value_heads, K = options.d_head;
  const auto b_QKV = attn.QKV.bias().clone(), W_O = attn.O.dense();
  auto b_V = b_QKV.narrow(0, (H + G) * K, G * K);
  const auto b_HK = wide(b_V).view({G, K}).repeat_interleave(H / G, 0).view({H * K});
  attn.O = nn::Linear(W_O, plus(attn.O.bias(), at::mv(wide(W_O), b_HK)).to(W_O.scalar_type()));
  b_V.zero_();
  attn.QKV = nn::Linear(attn.QKV.dense(), b_QKV);
}

struct Svd {
  torch::Tensor U, S, V;  // [n, m, K], [n, K], [n, p, K]
};

/// The singular values and vectors of A B^T, A [n, m, K] and B [n, p, K], by way of matrices of K x K.
Svd svd_of_product(const torch::Tensor& A, const torch::Tensor& B) {
  const auto [Q_A, R_A] = at::linalg_qr(A);
  const auto [Q_B, R_B] = at::linalg_qr(B);
  const auto [U, S, Vh] = at::linalg_svd(at::matmul(R_A, R_B.transpose(-2, -1)), /*full_matrices=*/false);
  return {at::matmul(Q_A, U), S, at::matmul(Q_B, Vh.transpose(-2, -1))};
}

void refactor(nn::AttentionWeights& attn, const nn::AttentionOptions& options) {
  const int64_t H = options.n_heads, K = options.d_head, D = attn.O.n_out();
  const auto W_QKV = attn.QKV.dense(), b_QKV = attn.QKV.bias(), b_O = attn.O.bias();
  const auto dtype = W_QKV.scalar_type();
  const auto qkv = wide(W_QKV).view({3, H, K, D}).transpose(2, 3);  // [3, H, D, K]
  const auto b_qkv = b_QKV.defined() ? wide(b_QKV).view({3, H, 1, K})
                                     : at::zeros({3, H, 1, K}, qkv.options());  // values' are folded
  // The bias is the weight of an input that is always one.
  const auto with_bias = [&](int64_t i) { return at::cat({qkv[i], b_qkv[i]}, 1); };
  const auto qk = svd_of_product(with_bias(0), with_bias(1));
  const auto root = qk.S.sqrt().unsqueeze(1);
  const auto W_Q = qk.U * root, W_K = qk.V * root;  // [H, D + 1, K]
  const auto ov = svd_of_product(qkv[2], wide(attn.O.dense()).view({D, H, K}).transpose(0, 1));
  const auto W_V = ov.U * ov.S.unsqueeze(1);

  const auto rows = [&](const torch::Tensor& W_HDK) { return W_HDK.transpose(1, 2).reshape({H * K, D}); };
  const auto last = [&](const torch::Tensor& W_HDK) { return W_HDK.select(1, D).reshape({H * K}); };
  attn.QKV = nn::Linear(
      at::cat({rows(W_Q.narrow(1, 0, D)), rows(W_K.narrow(1, 0, D)), rows(W_V)}).to(dtype),
      b_QKV.defined() ? at::cat({last(W_Q), last(W_K), at::zeros({H * K}, W_Q.options())}).to(dtype) : b_QKV);
  attn.O = nn::Linear(ov.V.transpose(0, 1).reshape({D, H * K}).to(dtype), b_O);
}

void process_attention(Weights& weights, const ProcessOptions& options) {
  edit_blocks(weights, [&](nn::BlockParts& parts, nn::AttentionWeights& attn) {
    fold_value_bias(attn, parts.attn.options());
    if (options.refactor_factored_attn_matrices) refactor(attn, parts.attn.options());
  });
}

/// What the weights are now, so that the config of a processed model describes it.
void describe(const Weights& weights, Config& cfg) {
  const auto& parts = weights.blocks.front().parts();
  const auto& attn = parts.attn.weights();
  const auto& mixture = parts.mlp.mixture();
  const auto& mlp = parts.mlp.is_mixture() ? mixture.experts.front() : parts.mlp.weights();
  cfg.qkv_bias = attn.QKV.bias().defined();
  cfg.attn_out_bias = attn.O.bias().defined();
  cfg.mlp_bias = mlp.in.bias().defined() || mlp.out.bias().defined();
  if (parts.mlp.is_mixture()) cfg.router_bias = mixture.router.bias().defined();
  cfg.tie_word_embeddings = weights.W_U.shares_weight(weights.W_E);
}

}  // namespace

std::shared_ptr<const Model> processed(const Model& model, const ProcessOptions& options) {
  auto cfg = model.cfg();
  check_options(cfg, options);
  const at::NoGradGuard no_grad;
  auto weights = whole_weights(model, "process_weights");
  if (options.fold_ln) fold_norms(weights);
  if (options.center_writing_weights) center_writing(weights);
  if (options.center_unembed) center_unembedding(weights);
  if (options.fold_value_biases || options.refactor_factored_attn_matrices)
    process_attention(weights, options);
  describe(weights, cfg);
  const bool none = !options.fold_ln && !options.center_writing_weights && !options.center_unembed &&
                    !options.fold_value_biases && !options.refactor_factored_attn_matrices;
  const auto hash =
      none ? model.hash()
           : sha256_hex(concat(model.hash(), " processed ", options.fold_ln, options.center_writing_weights,
                               options.center_unembed, options.fold_value_biases,
                               options.refactor_factored_attn_matrices));
  weights.is_processed = weights.is_processed || !none;
  return model.derived(std::move(cfg), std::move(weights), hash);
}

}  // namespace introspect::models

#include "introspect/analysis/ov_copying.h"

#include <algorithm>
#include <limits>
#include <set>
#include <vector>

#include "analysis/frozen_norm.h"
#include "core/on_device.h"
#include "introspect/core/check.h"

namespace introspect::analysis {

namespace {

using models::Model;

/// The value projection of a layer's key heads, [G * K, D].
nn::Linear values(const nn::Attention& attn) {
  const auto& o = attn.options();
  return attn.weights().QKV.rows((o.n_heads + o.n_key_value_heads) * o.d_head,
                                 o.n_key_value_heads * o.d_head);
}

/// [G, ...] repeated for every query head of the group, [H, ...].
torch::Tensor per_head(const torch::Tensor& x, int64_t n_heads) {
  return x.repeat_interleave(n_heads / x.size(0), 0);
}

/// What heads do to values [N, G, K] on their way to the stream, [N, H, D], before the norm after attention.
torch::Tensor written(const nn::Attention& attn, const torch::Tensor& v_NGK) {
  const int64_t H = attn.options().n_heads;
  const auto W_O_DHK = wide(attn.weights().O.dense()).view({-1, H, v_NGK.size(2)});
  return at::einsum("nhk,dhk->nhd", {v_NGK.repeat_interleave(H / v_NGK.size(1), 1), W_O_DHK});
}

/// How many tokens have a larger logit than a row's own, up to `limit`; rows y [R, D] are after the final norm.
torch::Tensor n_above(const Model& model, const torch::Tensor& y_RD, const torch::Tensor& own_R,
                      int64_t limit) {
  const auto& weights = model.weights();
  const auto logits_of = [&](const torch::Tensor& y, int64_t first, int64_t n) {
    const auto logits = at::matmul(y, wide(weights.W_U.rows(first, n).dense()).t());
    return weights.b_U.defined() ? logits + weights.b_U.narrow(0, first, n) : logits;
  };
  const auto W_own_RD = wide(weights.W_U.gather(own_R));
  auto own_logit_R = (y_RD * W_own_RD).sum({1});
  if (weights.b_U.defined()) own_logit_R = own_logit_R + weights.b_U.index_select(0, own_R);

  auto above_R = at::zeros({y_RD.size(0)}, own_R.options());
  auto left = at::arange(y_RD.size(0), own_R.options());
  const int64_t V = model.cfg().d_vocab;
  for (int64_t first = 0, n = 1024; first < V && left.numel() > 0;
       first += n, n = std::min<int64_t>(2 * n, 16384)) {
    n = std::min(n, V - first);
    const auto logits = logits_of(y_RD.index_select(0, left), first, n);
    auto larger = logits > own_logit_R.index_select(0, left).unsqueeze(1);
    const auto own =
        own_R.index_select(0, left).unsqueeze(1) - first;  // never above itself, whatever is rounded
    larger = larger.logical_and(at::arange(n, own.options()).unsqueeze(0).ne(own));
    const auto n_above = above_R.index_select(0, left) + larger.sum({1});
    above_R.index_copy_(0, left, n_above);
    left = left.index({n_above < limit});
  }
  return above_R;
}

/// Distinct tokens and the residual of each after block 0, where it stands first.
struct Read {
  torch::Tensor tokens_N, resid_ND;
};

Read read_tokens(const Model& model, const std::vector<torch::Tensor>& texts, int64_t max_tokens) {
  std::set<int64_t> seen;
  std::vector<int64_t> tokens;
  std::vector<torch::Tensor> resid;
  models::ForwardOptions pass;
  pass.stop_at_layer = 1;
  for (const auto& tokens_BT : texts) {
    const auto here = tokens_BT.to(torch::kCPU).contiguous();
    const auto* ids = here.const_data_ptr<int64_t>();
    std::vector<int64_t> places;
    for (int64_t i = 0; i < here.numel() && static_cast<int64_t>(tokens.size()) < max_tokens; ++i)
      if (i % here.size(1) != 0 && seen.insert(ids[i]).second) {
        places.push_back(i);
        tokens.push_back(ids[i]);
      }
    if (places.empty()) continue;
    const auto resid_BTD = model.forward(tokens_BT, pass).to(model.device());
    resid.push_back(resid_BTD.flatten(0, 1).index_select(0, on_device(places, model.device())));
  }
  check<ShapeError>(!resid.empty(), "copy_scores: texts must have two tokens at least");
  return {on_device(tokens, model.device()), at::cat(resid)};
}

}  // namespace

torch::Tensor ov_copying_scores(const Model& model, OvCircuit circuit) {
  const at::NoGradGuard no_grad;
  const int64_t L = model.cfg().n_layers, H = model.cfg().n_heads;
  const auto& weights = model.weights();
  torch::Tensor through_tokens_DD;  // from the stream to logits, and from these as tokens to the stream
  if (circuit == OvCircuit::kFull)
    through_tokens_DD = undivided_transpose(
        weights.ln_final, at::matmul(wide(weights.W_U.dense()).t(), wide(weights.W_E.dense())));
  auto scores = at::zeros({L, H}, torch::kFloat64);
  for (int64_t layer = 0; layer < L; ++layer) {
    const auto block = model.block(layer);
    const auto& parts = block->parts();
    const int64_t K = parts.attn.options().d_head;
    const auto W_V = undivided_transpose(parts.ln1, wide(values(parts.attn).dense()).t());  // [D, G * K]
    auto W_O_HKD = wide(parts.attn.weights().O.dense()).t().reshape({H, K, -1});
    if (parts.ln1_post) W_O_HKD = undivided(*parts.ln1_post, W_O_HKD);
    if (through_tokens_DD.defined()) W_O_HKD = at::matmul(W_O_HKD, through_tokens_DD.to(W_O_HKD.device()));
    const auto W_V_HDK = per_head(W_V.reshape({W_V.size(0), -1, K}).transpose(0, 1), H);
    const auto OV_HKK = at::bmm(W_O_HKD, W_V_HDK).to(torch::kCPU, torch::kFloat64);
    const auto eigenvalues_HK = at::linalg_eigvals(OV_HKK);
    scores[layer].copy_(at::real(eigenvalues_HK.sum({1})) / eigenvalues_HK.abs().sum({1}));
  }
  return scores;
}

CopyScores copy_scores(const Model& model, const std::vector<torch::Tensor>& texts,
                       const CopyOptions& options) {
  const at::NoGradGuard no_grad;
  const int64_t top_k = options.top_k, L = model.cfg().n_layers, H = model.cfg().n_heads;
  check<std::invalid_argument>(top_k > 0 && options.max_tokens > 0,
                               "copy_scores: top_k and max_tokens must be at least 1, got ", top_k, " and ",
                               options.max_tokens);
  for (const auto& tokens : texts)
    check<ShapeError>(tokens.dim() == 2 && tokens.scalar_type() == torch::kLong && tokens.numel() > 0,
                      "copy_scores: texts must be int64 [batch, pos], got ", tokens.scalar_type(), " ",
                      tokens.sizes());
  const auto& weights = model.weights();
  const auto [own_N, resid_ND] = read_tokens(model, texts, options.max_tokens);
  const auto own_NH = own_N.unsqueeze(1).expand({-1, H}).flatten();
  const auto dtype = wide(resid_ND).scalar_type();
  const auto mean_W_U = weights.W_U.dense().mean({0}, false, dtype);
  auto ln_final = weights.ln_final;
  if (ln_final.kind != nn::NormKind::kGemmaRms) ln_final.weight = ln_final.weight.to(dtype);
  if (ln_final.bias.defined()) ln_final.bias = ln_final.bias.to(dtype);
  const auto share = [&](const torch::Tensor& above_NH) {
    return (above_NH < top_k).view({-1, H}).to(torch::kFloat64).mean({0}).to(torch::kCPU);
  };

  CopyScores out;
  out.name_mover = at::zeros({L, H}, torch::kFloat64);
  out.copy_suppression = at::zeros_like(out.name_mover);
  out.ov_diagonal = at::zeros_like(out.name_mover);
  for (int64_t layer = 0; layer < L; ++layer) {
    report(options.progress, "heads' copying, by block", layer, L);
    const auto block = model.block(layer);
    const auto& parts = block->parts();
    const auto x_ND = parts.ln1.apply(resid_ND.to(model.device(layer)));
    const auto v_NGK = wide(values(parts.attn).forward(x_ND)).view({x_ND.size(0), -1, model.cfg().d_head});
    auto o_NHD = written(parts.attn, v_NGK);
    if (parts.ln1_post) o_NHD = parts.ln1_post->apply(o_NHD);
    const auto o_RD = o_NHD.flatten(0, 1).to(model.device());
    const auto normed = [&](const torch::Tensor& x) { return ln_final.apply(x); };
    const auto y_RD = normed(o_RD);
    out.name_mover[layer].copy_(share(n_above(model, y_RD, own_NH, top_k)));
    out.copy_suppression[layer].copy_(share(n_above(model, normed(-o_RD), own_NH, top_k)));
    auto diagonal = (y_RD * (wide(weights.W_U.gather(own_NH)) - mean_W_U)).sum({1});
    if (weights.b_U.defined()) diagonal = diagonal + weights.b_U.index_select(0, own_NH) - weights.b_U.mean();
    out.ov_diagonal[layer].copy_(diagonal.view({-1, H}).mean({0}));
  }
  report(options.progress, "heads' copying, by block", L, L);
  return out;
}

}  // namespace introspect::analysis

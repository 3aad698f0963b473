#include "circuits/frozen_model.h"

#include <stdexcept>

#include <ATen/ATen.h>

#include "circuits/norms.h"
#include "core/on_device.h"
#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"
#include "introspect/ops/attention.h"
#include "introspect/ops/rotary.h"

namespace introspect::circuits {

namespace {

/// index_select by a list that may be the host's.
torch::Tensor rows_of(const torch::Tensor& x, int64_t axis, const torch::Tensor& list) {
  return x.index_select(axis, on_device(list, x.device()));
}

}  // namespace

torch::Tensor checked_tokens(const models::Model& model, const torch::Tensor& tokens_T, int64_t least,
                             const char* who) {
  check<ShapeError>(tokens_T.defined() && tokens_T.dim() == 1 && tokens_T.size(0) >= least &&
                        at::isIntegralType(tokens_T.scalar_type(), /*includeBool=*/false),
                    who, ": tokens must be whole numbers [T], at least ", least, ", got ",
                    tokens_T.defined() ? concat(tokens_T.scalar_type(), " ", tokens_T.sizes()) : "none");
  const auto tokens = tokens_T.to(torch::kCPU, torch::kLong);
  check<std::out_of_range>(
      tokens.min().item<int64_t>() >= 0 && tokens.max().item<int64_t>() < model.cfg().d_vocab, who,
      ": tokens must be 0 to ", model.cfg().d_vocab - 1);
  return tokens;
}

torch::Tensor logit_directions(const models::Model& model, const torch::Tensor& ids) {
  const auto& W_U = model.weights().W_U;
  return W_U.gather(ids.to(W_U.device()), W_U.wide_dtype()) - W_U.dense(W_U.wide_dtype()).mean(0);
}

FrozenModel::FrozenModel(const models::Model& model, const torch::Tensor& tokens_T,
                         int64_t memory_for_patterns, const std::vector<Injection>& injections)
    : decoder_(model, Nodes::of(model.cfg()), tokens_T.size(0)) {
  check<ConfigError>(
      model.device().is_cpu(),
      "circuits: attribution graphs and attribution to queries and keys run on the CPU; load the "
      "model with device='cpu', it is on ",
      model.device());
  const at::NoGradGuard no_grad;
  const int64_t T = tokens_T.size(0), H = model.cfg().n_heads;
  const auto embedded = decoder_.embedded(tokens_T.unsqueeze(0));
  embedded_TD_ = wide(embedded[0]);
  auto x_TD = embedded_TD_;
  if (model.weights().W_pos.defined()) {
    positions_TD_ = wide(model.weights().W_pos.narrow(0, 0, T));
    x_TD = x_TD + positions_TD_;
  }
  const bool keeps_patterns = n_layers() * H * T * T * x_TD.element_size() <= memory_for_patterns;
  for (int64_t layer = 0; layer < n_layers(); ++layer) {
    check_interrupt();
    const auto block = model.block(layer);
    const auto& [ln1, attn, ln1_post, ln2, mlp, ln2_post, parallel] = block->parts();
    Layer kept;
    kept.resid_pre_TD = x_TD;
    kept.ln1_inverse_T1 = inverse_scale(ln1, x_TD);
    const auto qkv = this->decoder_.qkv(layer, decoder_.project(layer, x_TD.to(model.dtype()).unsqueeze(0)));
    const auto pattern_HTS = make_pattern(layer, qkv);
    if (keeps_patterns) kept.pattern_HTS = pattern_HTS;

    const auto& options = attn.options();
    const int64_t G = options.n_key_value_heads, K = options.d_head;
    const auto mix = [&](const torch::Tensor& v_SGK) {  // [S, G, K] -> [T, D], without the biases after it
      const auto v_HSK = v_SGK.repeat_interleave(H / G, 1).transpose(0, 1);
      const auto z_TE = at::bmm(pattern_HTS, v_HSK).transpose(0, 1).reshape({T, H * K});
      return at::matmul(z_TE, wide(attn.weights().O.dense()).t());
    };
    // Of a stream of zeros: the bias of the norm through W_V, b_V, and after the heads b_O.
    const auto W_V = wide(attn.weights().QKV.dense()).narrow(0, (H + G) * K, G * K);
    auto b_V = torch::zeros({G * K}, x_TD.options());
    if (ln1.bias.defined()) b_V = b_V + at::mv(W_V, wide(ln1.bias));
    if (attn.weights().QKV.bias().defined())
      b_V = b_V + wide(attn.weights().QKV.bias()).narrow(0, (H + G) * K, G * K);
    // Values in the dtype of the graph, not rounded as the model's are: the map from the stream is then exact.
    const auto v_TE = at::linear(frozen_normed(ln1, x_TD, kept.ln1_inverse_T1), W_V) + b_V;
    auto out_TD = mix(v_TE.view({T, G, K}));
    auto bias_TD = mix(b_V.view({1, G, K}).expand({T, G, K}));
    if (attn.weights().O.bias().defined()) {
      out_TD = out_TD + wide(attn.weights().O.bias());
      bias_TD = bias_TD + wide(attn.weights().O.bias());
    }
    if (ln1_post) {
      kept.ln1_post_inverse_T1 = inverse_scale(*ln1_post, out_TD);
      out_TD = frozen_normed(*ln1_post, out_TD, kept.ln1_post_inverse_T1);
      bias_TD = frozen_normed(*ln1_post, bias_TD, kept.ln1_post_inverse_T1);
      if (ln1_post->bias.defined()) {
        out_TD = out_TD + wide(ln1_post->bias);
        bias_TD = bias_TD + wide(ln1_post->bias);
      }
    }
    kept.attention_bias_TD = bias_TD;
    kept.attention_out_TD = out_TD;
    const auto mid_TD = x_TD + out_TD;
    kept.mlp_reads_TD = parallel ? x_TD : mid_TD;
    kept.ln2_inverse_T1 = inverse_scale(ln2, kept.mlp_reads_TD);
    kept.mlp_out_TD = wide(decoder_.mlp_out(layer, kept.mlp_reads_TD.to(model.dtype()).unsqueeze(0))[0]);
    x_TD = mid_TD + kept.mlp_out_TD;
    for (const auto& injection : injections) {
      if (injection.layer != layer) continue;
      if (!kept.injected_TD.defined()) kept.injected_TD = at::zeros_like(x_TD);
      for (const int64_t position : injection.positions)
        kept.injected_TD[position] += injection.vector_D.to(x_TD.options());
    }
    if (kept.injected_TD.defined()) x_TD = x_TD + kept.injected_TD;
    layers_.push_back(std::move(kept));
  }
  check<Error>(at::isfinite(x_TD).all().item<bool>(), "circuits: the stream of ", T, " tokens in '",
               model.cfg().model_name, "' must be finite, got NaN or infinity: are its weights whole?");
  last_TD_ = x_TD;
  final_inverse_T1_ = inverse_scale(model.ln_final(), x_TD);
}

torch::Tensor FrozenModel::make_pattern(int64_t layer, const Decoder::Qkv& qkv) const {
  const auto block = this->block(layer);
  const auto& options = block->parts().attn.options();
  const auto scores_BHTS =
      ops::attention_scores(wide(qkv.q_BTHK), wide(qkv.k_BTGK).transpose(1, 2), 1 / options.score_divisor,
                            decoder_.positions_at(layer).mask, options.soft_cap);
  return block->parts().attn.pattern(scores_BHTS)[0];
}

Decoder::Qkv FrozenModel::qkv(int64_t layer) const {
  const auto& x_TD = resid_pre_TD(layer);
  return decoder_.qkv(layer, decoder_.project(layer, x_TD.to(model().dtype()).unsqueeze(0)));
}

torch::Tensor FrozenModel::rotated(int64_t layer, const torch::Tensor& x_NK, int64_t position) const {
  const auto& positions = decoder_.positions_at(layer);
  if (!positions.cos.defined()) return x_NK;
  const auto of = [&](const torch::Tensor& table) { return wide(table).narrow(1, position, 1); };
  return ops::apply_rotary(x_NK.unsqueeze(0).unsqueeze(0), of(positions.cos), of(positions.sin))[0][0];
}

torch::Tensor FrozenModel::pattern_HTS(int64_t layer) const {
  const auto& kept = layers_[size_t(layer)].pattern_HTS;
  return kept.defined() ? kept : make_pattern(layer, qkv(layer));
}

int64_t FrozenModel::pattern_bytes() const {
  int64_t out = 0;
  for (const auto& layer : layers_)
    if (layer.pattern_HTS.defined()) out += static_cast<int64_t>(layer.pattern_HTS.nbytes());
  return out;
}

nn::Norm FrozenModel::mlp_norm(int64_t layer, TranscoderInput input) const {
  const auto block = this->block(layer);
  auto norm = block->parts().ln2;
  if (input == TranscoderInput::normalized && !norm.is_none()) norm.weight = at::ones_like(norm.weight);
  return norm;
}

torch::Tensor FrozenModel::mlp_input_TD(int64_t layer, TranscoderInput input) const {
  const auto& at = layers_[size_t(layer)];
  if (input == TranscoderInput::residual) return at.mlp_reads_TD;
  const auto x_TD = frozen_normed(mlp_norm(layer, input), at.mlp_reads_TD, at.ln2_inverse_T1);
  const auto bias_D = mlp_input_bias_D(layer, input);
  return bias_D.defined() ? x_TD + bias_D : x_TD;
}

torch::Tensor FrozenModel::mlp_input_bias_D(int64_t layer, TranscoderInput input) const {
  if (input != TranscoderInput::mlp) return {};
  const auto block = this->block(layer);
  const auto& bias = block->parts().ln2.bias;
  return bias.defined() ? wide(bias) : torch::Tensor{};
}

torch::Tensor FrozenModel::mlp_input_gradient(int64_t layer, TranscoderInput input, const torch::Tensor& g_RD,
                                              const torch::Tensor& positions_R) const {
  if (input == TranscoderInput::residual) return g_RD;
  return frozen_gradient(mlp_norm(layer, input), g_RD,
                         rows_of(layers_[size_t(layer)].ln2_inverse_T1, 0, positions_R));
}

torch::Tensor FrozenModel::mlp_input_gradient(int64_t layer, TranscoderInput input,
                                              const torch::Tensor& g_PRD) const {
  if (input == TranscoderInput::residual) return g_PRD;
  const auto inverse_P11 = layers_[size_t(layer)].ln2_inverse_T1.narrow(0, 0, g_PRD.size(0)).unsqueeze(1);
  return frozen_gradient(mlp_norm(layer, input), g_PRD, inverse_P11);
}

torch::Tensor FrozenModel::through_values(int64_t layer, const torch::Tensor& g_PRHK) const {
  const auto block = this->block(layer);
  const auto& attn = block->parts().attn;
  const int64_t H = attn.options().n_heads, G = attn.options().n_key_value_heads, K = attn.options().d_head;
  const int64_t P = g_PRHK.size(0), R = g_PRHK.size(1);
  const auto g_v = H == G ? g_PRHK : g_PRHK.reshape({P, R, G, H / G, K}).sum(3);
  const auto W_V = wide(attn.weights().QKV.dense()).narrow(0, (H + G) * K, G * K);
  const auto g_PRD = at::mm(g_v.reshape({P * R, G * K}), W_V).view({P, R, -1});
  return frozen_gradient(block->parts().ln1, g_PRD,
                         layers_[size_t(layer)].ln1_inverse_T1.narrow(0, 0, P).unsqueeze(1));
}

torch::Tensor FrozenModel::attention_gradient(int64_t layer, const torch::Tensor& g_PRD) const {
  const auto block = this->block(layer);
  const auto& [ln1, attn, ln1_post, ln2, mlp, ln2_post, parallel] = block->parts();
  const int64_t H = attn.options().n_heads, K = attn.options().d_head, P = g_PRD.size(0), R = g_PRD.size(1);
  auto g = g_PRD;
  if (ln1_post)
    g = frozen_gradient(*ln1_post, g,
                        layers_[size_t(layer)].ln1_post_inverse_T1.narrow(0, 0, P).unsqueeze(1));
  const auto g_z = at::mm(g.reshape({P * R, -1}), wide(attn.weights().O.dense())).view({P, R, H, K});
  const auto g_HPE = g_z.permute({2, 0, 1, 3}).reshape({H, P, R * K});
  const auto pattern_HPS = pattern_HTS(layer).narrow(1, 0, P).narrow(2, 0, P);
  const auto g_v = at::bmm(pattern_HPS.transpose(1, 2), g_HPE).view({H, P, R, K}).permute({1, 2, 0, 3});
  return through_values(layer, g_v);
}

torch::Tensor FrozenModel::attention_gradient(int64_t layer, const torch::Tensor& g_RD,
                                              const torch::Tensor& positions_R, int64_t n_positions) const {
  const auto block = this->block(layer);
  const auto& [ln1, attn, ln1_post, ln2, mlp, ln2_post, parallel] = block->parts();
  const int64_t H = attn.options().n_heads, K = attn.options().d_head, R = g_RD.size(0);
  auto g = g_RD;
  if (ln1_post)
    g = frozen_gradient(*ln1_post, g, rows_of(layers_[size_t(layer)].ln1_post_inverse_T1, 0, positions_R));
  const auto g_RHK = at::mm(g, wide(attn.weights().O.dense())).view({R, H, K});
  const auto pattern_PRH =
      rows_of(pattern_HTS(layer), 1, positions_R).narrow(2, 0, n_positions).permute({2, 1, 0});
  return through_values(layer, pattern_PRH.unsqueeze(3) * g_RHK.unsqueeze(0));
}

torch::Tensor FrozenModel::attention_change(int64_t layer, const torch::Tensor& x_TD) const {
  const auto block = this->block(layer);
  const auto& [ln1, attn, ln1_post, ln2, mlp, ln2_post, parallel] = block->parts();
  const int64_t H = attn.options().n_heads, G = attn.options().n_key_value_heads, K = attn.options().d_head;
  const auto& at = layers_[size_t(layer)];
  const auto W_V = wide(attn.weights().QKV.dense()).narrow(0, (H + G) * K, G * K);
  const auto v_TGK = at::linear(frozen_normed(ln1, x_TD, at.ln1_inverse_T1), W_V).unflatten(1, {G, K});
  const auto z_HTK = at::bmm(pattern_HTS(layer), v_TGK.repeat_interleave(H / G, 1).transpose(0, 1));
  const auto W_HKD = wide(attn.weights().O.dense()).t().reshape({H, K, -1});
  const auto out_HTD = at::bmm(z_HTK, W_HKD);
  return ln1_post ? frozen_normed(*ln1_post, out_HTD, at.ln1_post_inverse_T1) : out_HTD;
}

torch::Tensor FrozenModel::mlp_input_change(int64_t layer, TranscoderInput input,
                                            const torch::Tensor& x_TD) const {
  if (input == TranscoderInput::residual) return x_TD;
  return frozen_normed(mlp_norm(layer, input), x_TD, layers_[size_t(layer)].ln2_inverse_T1);
}

torch::Tensor FrozenModel::attention_out_TD(int64_t layer) const {
  return layers_[size_t(layer)].attention_out_TD;
}

torch::Tensor FrozenModel::final_gradient(const torch::Tensor& g_RD, const torch::Tensor& positions_R) const {
  return frozen_gradient(model().ln_final(), g_RD, rows_of(final_inverse_T1_, 0, positions_R));
}

torch::Tensor FrozenModel::final_bias_D() const {
  const auto& bias = model().ln_final().bias;
  return bias.defined() ? wide(bias) : torch::Tensor{};
}

}  // namespace introspect::circuits

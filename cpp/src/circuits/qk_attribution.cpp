#include "introspect/circuits/qk_attribution.h"

#include <stdexcept>

#include <ATen/ATen.h>

#include "circuits/feature_layers.h"
#include "circuits/frozen_model.h"
#include "circuits/norms.h"
#include "introspect/core/check.h"

namespace introspect::circuits {

namespace {

using Kind = QkPart::Kind;

FeatureLayers features_of(const FrozenModel& frozen, const Transcoders& transcoders, bool mask_first) {
  if (!transcoders.layers.empty() || transcoders.cross_layer)
    return read_features(frozen, transcoders, mask_first);
  FeatureLayers none;
  none.bias_D.resize(size_t(frozen.n_layers()));
  none.skip_DD.resize(size_t(frozen.n_layers()));
  for (int64_t layer = 0; layer < frozen.n_layers(); ++layer)
    none.error_TD.push_back(frozen.mlp_out_TD(layer));
  return none;
}

struct Parts {
  std::vector<QkPart> parts;
  std::vector<torch::Tensor> vectors;  // [D] each; they sum to the stream

  void add(QkPart part, torch::Tensor vector) {
    parts.push_back(part);
    vectors.push_back(std::move(vector));
  }
};

/// What stands in the stream before a block at one position.
Parts parts_at(const FrozenModel& frozen, const FeatureLayers& features, int64_t layer, int64_t position) {
  Parts out;
  for (const auto& from : features.layers) {
    const auto first = from.offsets[position].item<int64_t>(),
               n = from.offsets[position + 1].item<int64_t>() - first;
    for (int64_t i = first; i < first + n; ++i) {
      torch::Tensor vector;
      for (const auto& [to, W_dec_FD] : from.writes) {
        if (to >= layer) continue;
        const auto row = W_dec_FD[from.ids[i].item<int64_t>()];
        vector = vector.defined() ? vector + row : row;
      }
      if (!vector.defined()) continue;
      const auto a = from.activations[i];
      out.add({Kind::feature, from.layer, from.ids[i].item<int64_t>(), a.item<double>()}, vector * a);
    }
  }
  const auto& embedded = frozen.embedded_TD();
  auto bias_D = at::zeros({embedded.size(1)}, embedded.options());
  if (frozen.positions_TD().defined()) bias_D = bias_D + frozen.positions_TD()[position];
  for (int64_t below = 0; below < layer; ++below) {
    out.add({Kind::attention, below}, frozen.attention_out_TD(below)[position]);
    // Of a layer with a skip, what it carries is left with the error: the MLP's output less features and constant.
    auto error_D = features.error_TD[size_t(below)][position];
    const auto& skip_DD = features.skip_DD[size_t(below)];
    if (skip_DD.defined()) {
      const auto x_D = frozen.mlp_input_TD(below, features.input)[position];
      const auto constant_D = frozen.mlp_input_bias_D(below, features.input);
      error_D = error_D + at::mv(skip_DD, constant_D.defined() ? x_D - constant_D : x_D);
    }
    out.add({Kind::error, below}, error_D);
    if (features.bias_D[size_t(below)].defined()) bias_D = bias_D + features.bias_D[size_t(below)];
  }
  out.add({Kind::token, -1}, embedded[position]);
  out.add({Kind::bias, -1}, bias_D);
  return out;
}

torch::Tensor linear_part(const torch::Tensor& vectors_ND, const nn::Norm& norm, const torch::Tensor& inverse,
                          const torch::Tensor& W_KD, const torch::Tensor& b_K) {
  auto out_NK = at::linear(frozen_normed(norm, vectors_ND, inverse), W_KD);
  // The last part is the bias, which the norm's and the projection's own go to.
  auto own_K = at::zeros_like(out_NK[0]);
  if (norm.bias.defined()) own_K = own_K + at::mv(W_KD, wide(norm.bias));
  if (b_K.defined()) own_K = own_K + b_K;
  out_NK[-1] += own_K;
  return out_NK;
}

}  // namespace

QkAttribution qk_attribution(const models::Model& model, const torch::Tensor& tokens_T, int64_t layer,
                             int64_t head, int64_t query, int64_t key, const Transcoders& transcoders,
                             bool mask_first) {
  const at::NoGradGuard no_grad;
  const auto tokens = checked_tokens(model, tokens_T, 1, "qk_attribution");
  const int64_t T = tokens.size(0);
  const auto within = [](int64_t value, int64_t n, const char* what) {
    check<std::out_of_range>(value >= 0 && value < n, "qk_attribution: ", what, " must be 0 to ", n - 1,
                             ", got ", value);
  };
  within(layer, model.cfg().n_layers, "the layer");
  within(head, model.cfg().n_heads, "the head");
  within(query, T, "the query's position");
  within(key, T, "the key's position");
  const FrozenModel frozen(model, tokens, int64_t{1} << 30);
  const auto pattern = frozen.pattern_HTS(layer)[head][query][key].item<double>();
  check<std::invalid_argument>(key <= query && pattern > 0, "qk_attribution: position ", query,
                               " does not see position ", key, " in layer ", layer);
  const auto features = features_of(frozen, transcoders, mask_first);

  const auto block = model.block(layer);
  const auto& attention = block->parts().attn;
  const auto& options = attention.options();
  const int64_t H = options.n_heads, G = options.n_key_value_heads, K = options.d_head,
                group = head / (H / G);
  const auto W = wide(attention.weights().QKV.dense());
  const auto& b = attention.weights().QKV.bias();
  const auto rows = [&](int64_t first) { return W.narrow(0, first * K, K); };
  const auto biases = [&](int64_t first) {
    return b.defined() ? wide(b).narrow(0, first * K, K) : torch::Tensor{};
  };
  const auto inverse = frozen.ln1_inverse_T1(layer);
  const auto of = [&](const Parts& parts, int64_t position, int64_t first,
                      const std::optional<nn::Norm>& norm) {
    auto x_NK = linear_part(at::stack(parts.vectors), block->parts().ln1, inverse[position], rows(first),
                            biases(first));
    if (norm) {
      const auto whole_K = x_NK.sum(0);
      x_NK = frozen_normed(*norm, x_NK, inverse_scale(*norm, whole_K));
      if (norm->bias.defined()) x_NK[-1] += wide(norm->bias);
    }
    return frozen.rotated(layer, x_NK, position);
  };
  const auto query_parts = parts_at(frozen, features, layer, query),
             key_parts = parts_at(frozen, features, layer, key);
  const auto q_NK = of(query_parts, query, head, attention.weights().q_norm);
  const auto k_MK = of(key_parts, key, H + group, attention.weights().k_norm);
  QkAttribution out{layer, head, query, key, query_parts.parts, key_parts.parts, {}};
  out.terms = at::mm(q_NK, k_MK.t()) / options.score_divisor;
  out.score = at::dot(q_NK.sum(0), k_MK.sum(0)).item<double>() / options.score_divisor;
  out.pattern = pattern;
  out.soft_cap = options.soft_cap;
  return out;
}

HeadLoadings head_loadings(const models::Model& model, const torch::Tensor& tokens_T,
                           const Transcoders& transcoders, const GraphNode& source, const GraphNode& target,
                           bool mask_first) {
  const at::NoGradGuard no_grad;
  const auto tokens = checked_tokens(model, tokens_T, 1, "head_loadings");
  const FrozenModel frozen(model, tokens, int64_t{1} << 30);
  const auto features = features_of(frozen, transcoders, mask_first);
  const int64_t T = frozen.n_tokens(), L = frozen.n_layers(), H = model.cfg().n_heads;
  const auto options = frozen.embedded_TD().options();
  const int64_t D = frozen.embedded_TD().size(1);
  const auto position_of = [&](const GraphNode& node) {
    check<std::out_of_range>(node.position >= 0 && node.position < T,
                             "head_loadings: positions must be 0 to ", T - 1, ", got ", node.position);
    return node.position;
  };
  const auto layer_of = [&](const GraphNode& node) -> const FeatureLayer& {
    for (const auto& one : features.layers)
      if (one.layer == node.layer) return one;
    throw std::invalid_argument(concat("head_loadings: layer ", node.layer, " has no transcoder"));
  };

  // What the source adds to the stream after each layer: [T, D] by layer, the embedding's at -1.
  const int64_t at = position_of(source);
  std::vector<torch::Tensor> added(static_cast<size_t>(L));
  torch::Tensor change_TD = at::zeros({T, D}, options);
  switch (source.kind) {
    case GraphNodeKind::token:
      change_TD[at] = frozen.embedded_TD()[at];
      break;
    case GraphNodeKind::error:
      check<std::out_of_range>(source.layer >= 0 && source.layer < L, "head_loadings: layers are 0 to ",
                               L - 1, ", got ", source.layer);
      added[size_t(source.layer)] = features.error_TD[size_t(source.layer)][at];
      break;
    case GraphNodeKind::feature: {
      const auto& from = layer_of(source);
      const auto first = from.offsets[at].item<int64_t>(), n = from.offsets[at + 1].item<int64_t>() - first;
      torch::Tensor activation;
      for (int64_t i = first; i < first + n; ++i)
        if (from.ids[i].item<int64_t>() == source.feature) activation = from.activations[i];
      check<std::invalid_argument>(activation.defined(), "head_loadings: feature ", source.feature,
                                   " of layer ", source.layer, " is not active at position ", at);
      for (const auto& [to, W_dec_FD] : from.writes)
        added[size_t(to)] = W_dec_FD[source.feature] * activation;
      break;
    }
    default:
      throw std::invalid_argument("head_loadings: a source must be a feature, an error or a token");
  }

  // The gradient of the target at the stream, from its own layer down.
  const auto t_position = at::tensor({position_of(target)}, at::kLong);
  int64_t top = L;  // the target reads the stream after this block's attention, or after the last block
  torch::Tensor g_TD = at::zeros({T, D}, options);
  if (target.kind == GraphNodeKind::feature) {
    const auto& one = layer_of(target);
    check<std::out_of_range>(target.feature >= 0 && target.feature < one.W_enc_FD.size(0),
                             "head_loadings: features are 0 to ", one.W_enc_FD.size(0) - 1, ", got ",
                             target.feature);
    top = target.layer;
    g_TD[target.position] = frozen.mlp_input_gradient(
        top, features.input, one.W_enc_FD[target.feature].unsqueeze(0), t_position)[0];
  } else {
    check<std::invalid_argument>(target.kind == GraphNodeKind::logit,
                                 "head_loadings: a target must be a feature or a logit");
    check<std::out_of_range>(target.feature >= 0 && target.feature < model.cfg().d_vocab,
                             "head_loadings: tokens are 0 to ", model.cfg().d_vocab - 1, ", got ",
                             target.feature);
    const auto u_1D = logit_directions(model, at::tensor({target.feature}, at::kLong));
    g_TD[target.position] = frozen.final_gradient(u_1D, t_position)[0];
  }
  const auto target_TD = g_TD;
  const bool reads_attention = !(frozen.parallel() && target.kind == GraphNodeKind::feature);
  std::vector<torch::Tensor> mid(static_cast<size_t>(L)),
      pre(static_cast<size_t>(L));  // gradients after and before each layer's attention
  const auto skip = [&](int64_t layer, const torch::Tensor& g) {
    const auto& skip_DD = features.skip_DD[size_t(layer)];
    if (!skip_DD.defined()) return at::zeros_like(g);
    return frozen.mlp_input_gradient(layer, features.input, at::matmul(g, skip_DD).unsqueeze(1)).squeeze(1);
  };
  for (int64_t layer = std::min(top, L - 1); layer >= 0; --layer) {
    const bool own = layer == top;
    const auto through = own ? at::zeros_like(g_TD) : skip(layer, g_TD);
    if (own && !reads_attention) {
      pre[size_t(layer)] = g_TD;
      continue;
    }
    mid[size_t(layer)] = frozen.parallel() ? g_TD : g_TD + through;
    g_TD = mid[size_t(layer)] + frozen.attention_gradient(layer, mid[size_t(layer)].unsqueeze(1)).squeeze(1);
    if (frozen.parallel()) g_TD = g_TD + through;
    pre[size_t(layer)] = g_TD;
  }

  HeadLoadings out;
  std::vector<torch::Tensor> heads, past;
  bool begun = source.kind == GraphNodeKind::token;
  const int64_t last = std::min(top, L - 1);
  for (int64_t layer = 0; layer <= last; ++layer) {
    auto through_HTD = at::zeros({H, T, D}, options);
    if (begun && mid[size_t(layer)].defined()) {
      through_HTD = frozen.attention_change(layer, change_TD);
      const auto by_head_H = (through_HTD * mid[size_t(layer)]).sum({1, 2});
      const auto whole = (pre[size_t(layer)] * change_TD).sum();
      out.layers.push_back(layer);
      heads.push_back(by_head_H);
      past.push_back(whole - by_head_H.sum());
    }
    if (layer == top) break;
    const auto read_TD = frozen.parallel() ? change_TD : change_TD + through_HTD.sum(0);
    auto next_TD = change_TD + through_HTD.sum(0);
    if (features.skip_DD[size_t(layer)].defined())
      next_TD = next_TD + at::linear(frozen.mlp_input_change(layer, features.input, read_TD),
                                     features.skip_DD[size_t(layer)]);
    if (added[size_t(layer)].defined()) {
      next_TD[at] += added[size_t(layer)];
      begun = true;
    }
    change_TD = next_TD;
  }
  out.heads = heads.empty() ? at::zeros({0, H}, options) : at::stack(heads);
  out.past_attention = past.empty() ? at::zeros({0}, options) : at::stack(past);
  const auto& g_end_TD = top < L ? pre[size_t(top)] : target_TD;
  out.edge = (g_end_TD * change_TD).sum().item<double>();
  return out;
}

}  // namespace introspect::circuits

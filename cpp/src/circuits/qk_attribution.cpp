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
  int64_t cut = -1;  // the block after which an SAE stands for the stream
  for (int64_t below = 0; below < layer; ++below)
    if (features.split(FeatureSite::residual, below)) cut = below;
  for (const auto& from : features.layers) {
    const auto first = from.offsets[position].item<int64_t>(),
               n = from.offsets[position + 1].item<int64_t>() - first;
    for (int64_t i = first; i < first + n; ++i) {
      torch::Tensor vector;
      for (const auto& [to, W_dec_FD] : from.writes) {
        if (to >= layer || to < cut || (to == cut && from.site != FeatureSite::residual)) continue;
        const auto row = W_dec_FD[from.ids[i].item<int64_t>()];
        vector = vector.defined() ? vector + row : row;
      }
      if (!vector.defined()) continue;
      const auto a = from.activations[i];
      out.add({Kind::feature, from.layer, from.ids[i].item<int64_t>(), a.item<double>(), from.site},
              vector * a);
    }
  }
  const auto& embedded = frozen.embedded_TD();
  auto bias_D = at::zeros({embedded.size(1)}, embedded.options());
  if (cut < 0 && frozen.positions_TD().defined()) bias_D = bias_D + frozen.positions_TD()[position];
  const auto add_split = [&](const Split& split) {
    out.add({Kind::error, split.layer, -1, 0, split.site}, split.error_TD[position]);
    if (split.bias_D.defined()) bias_D = bias_D + split.bias_D;
  };
  if (cut >= 0) add_split(*features.split(FeatureSite::residual, cut));
  for (int64_t below = cut + 1; below < layer; ++below) {
    if (const auto* heads = features.split(FeatureSite::attention, below))
      add_split(*heads);
    else
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
  if (cut < 0) out.add({Kind::token, -1}, embedded[position]);
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
  const auto features = read_features(frozen, transcoders, mask_first, /*may_be_none=*/true);

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
                      const std::optional<nn::Norm>& norm, int64_t first_of_kind, int64_t n_of_kind) {
    auto x_NK = linear_part(at::stack(parts.vectors), block->parts().ln1, inverse[position], rows(first),
                            biases(first));
    if (norm) {
      auto own = *norm;
      auto whole = x_NK.sum(0);
      if (norm->over_heads) {  // OLMo's: the scale is that of all heads together
        own.weight = norm->weight.narrow(0, (first - first_of_kind) * K, K);
        const auto stream = at::stack(parts.vectors);
        const auto all = W.narrow(0, first_of_kind * K, n_of_kind * K);
        whole =
            linear_part(stream, block->parts().ln1, inverse[position], all,
                        b.defined() ? wide(b).narrow(0, first_of_kind * K, n_of_kind * K) : torch::Tensor{})
                .sum(0);
      }
      x_NK = frozen_normed(own, x_NK, inverse_scale(own, whole));
      if (norm->bias.defined()) x_NK[-1] += wide(norm->bias);
    }
    return frozen.rotated(layer, x_NK, position);
  };
  const auto query_parts = parts_at(frozen, features, layer, query),
             key_parts = parts_at(frozen, features, layer, key);
  const auto q_NK = of(query_parts, query, head, attention.weights().q_norm, 0, H);
  const auto k_MK = of(key_parts, key, H + group, attention.weights().k_norm, H, G);
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
  const auto features = read_features(frozen, transcoders, mask_first, /*may_be_none=*/true);
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
      if (one.layer == node.layer && one.site == node.site) return one;
    throw std::invalid_argument(
        concat("head_loadings: layer ", node.layer, " has no dictionary at its ", to_string(node.site)));
  };

  // What the source adds at its site of each layer, [D].
  const int64_t at = position_of(source);
  std::vector<torch::Tensor> added(static_cast<size_t>(L));
  const auto added_at = [&](FeatureSite site, int64_t layer) {
    return source.kind != GraphNodeKind::token && source.site == site ? added[size_t(layer)]
                                                                      : torch::Tensor{};
  };
  torch::Tensor change_TD = at::zeros({T, D}, options);
  switch (source.kind) {
    case GraphNodeKind::token:
      change_TD[at] = frozen.embedded_TD()[at];
      break;
    case GraphNodeKind::error:
      check<std::out_of_range>(source.layer >= 0 && source.layer < L, "head_loadings: layers are 0 to ",
                               L - 1, ", got ", source.layer);
      if (source.site == FeatureSite::mlp) {
        added[size_t(source.layer)] = features.error_TD[size_t(source.layer)][at];
      } else {
        const auto* split = features.split(source.site, source.layer);
        check<std::invalid_argument>(split != nullptr, "head_loadings: layer ", source.layer,
                                     " has no SAE at its ", to_string(source.site));
        added[size_t(source.layer)] = split->error_TD[at];
      }
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
  const bool is_feature = target.kind == GraphNodeKind::feature;
  int64_t top = L - 1;  // the last block on the way
  torch::Tensor g_TD = at::zeros({T, D}, options);
  if (is_feature) {
    const auto& one = layer_of(target);
    check<std::out_of_range>(target.feature >= 0 && target.feature < one.W_enc_FD.size(0),
                             "head_loadings: features are 0 to ", one.W_enc_FD.size(0) - 1, ", got ",
                             target.feature);
    top = target.layer;
    const auto w_1D = one.W_enc_FD[target.feature].unsqueeze(0);
    g_TD[target.position] = target.site == FeatureSite::mlp
                                ? frozen.mlp_input_gradient(top, features.input, w_1D, t_position)[0]
                                : w_1D[0];
  } else {
    check<std::invalid_argument>(target.kind == GraphNodeKind::logit,
                                 "head_loadings: a target must be a feature or a logit");
    check<std::out_of_range>(target.feature >= 0 && target.feature < model.cfg().d_vocab,
                             "head_loadings: tokens are 0 to ", model.cfg().d_vocab - 1, ", got ",
                             target.feature);
    const auto u_1D = logit_directions(model, at::tensor({target.feature}, at::kLong));
    g_TD[target.position] = frozen.final_gradient(u_1D, t_position)[0];
  }
  const bool reads_attention = is_feature && target.site == FeatureSite::attention;
  const bool reads_mlp_input = is_feature && target.site == FeatureSite::mlp;
  const auto skip = [&](int64_t layer, const torch::Tensor& g) {
    const auto& skip_DD = features.skip_DD[size_t(layer)];
    if (!skip_DD.defined()) return at::zeros_like(g);
    return frozen.mlp_input_gradient(layer, features.input, at::matmul(g, skip_DD).unsqueeze(1)).squeeze(1);
  };
  /// Gradients at what a layer adds: after the block, after its MLP, after its attention; and before the block. Undefined
  /// where the target does not read.
  struct Gradients {
    torch::Tensor after, mlp, attention, before;
  };
  std::vector<Gradients> gradients(static_cast<size_t>(L));
  for (int64_t layer = top; layer >= 0; --layer) {
    auto& at_layer = gradients[size_t(layer)];
    const bool own = layer == top;
    const auto own_read = [&](bool here) { return own && here; };
    torch::Tensor through;
    if (own_read(reads_attention)) {
      at_layer.attention = g_TD;
    } else if (own_read(reads_mlp_input)) {
      if (frozen.parallel()) {
        at_layer.before = g_TD;
        continue;
      }
      at_layer.attention = g_TD;
    } else {
      const bool cut = features.split(FeatureSite::residual, layer) != nullptr;
      const bool is_below_cut = own_read(is_feature && target.site == FeatureSite::residual);
      if (!is_below_cut) at_layer.after = g_TD;
      if (cut && !is_below_cut) break;  // nothing passes an SAE of the stream
      at_layer.mlp = g_TD;
      through = skip(layer, g_TD);
      at_layer.attention = frozen.parallel() ? g_TD : g_TD + through;
    }
    const auto& mid = at_layer.attention;
    auto below = own_read(reads_attention) ? at::zeros_like(mid) : mid;
    if (own_read(reads_attention) || !features.split(FeatureSite::attention, layer))
      below = below + frozen.attention_gradient(layer, mid.unsqueeze(1)).squeeze(1);
    if (frozen.parallel() && through.defined()) below = below + through;
    g_TD = at_layer.before = below;
  }

  HeadLoadings out;
  std::vector<torch::Tensor> heads, past;
  torch::Tensor edge = at::zeros({}, options);
  bool begun = source.kind == GraphNodeKind::token;
  const auto add = [&](FeatureSite site, int64_t layer, const torch::Tensor& gradient_TD) {
    const auto what_D = added_at(site, layer);
    if (!what_D.defined()) return;
    change_TD[at] += what_D;
    begun = true;
    if (gradient_TD.defined()) edge = edge + at::dot(gradient_TD[at], what_D);
  };
  if (begun && gradients[0].before.defined()) edge = (gradients[0].before * change_TD).sum();
  for (int64_t layer = 0; layer <= top; ++layer) {
    const auto& at_layer = gradients[size_t(layer)];
    const bool own = layer == top;
    const bool own_heads = own && reads_attention;
    const bool cut = features.split(FeatureSite::attention, layer) && !own_heads;
    auto through_HTD = at::zeros({H, T, D}, options);
    if (begun && at_layer.attention.defined()) {
      if (!cut) through_HTD = frozen.attention_change(layer, change_TD);
      const auto by_head_H = (through_HTD * at_layer.attention).sum({1, 2});
      const auto whole = (at_layer.before * change_TD).sum();
      out.layers.push_back(layer);
      heads.push_back(by_head_H);
      past.push_back(whole - by_head_H.sum());
    } else if (begun && !cut) {
      through_HTD = frozen.attention_change(layer, change_TD);
    }
    if (own_heads) break;
    const auto read_before_TD = change_TD;
    change_TD = change_TD + through_HTD.sum(0);
    add(FeatureSite::attention, layer, at_layer.attention);
    if (own && reads_mlp_input) break;
    const auto& read_TD = frozen.parallel() ? read_before_TD : change_TD;
    if (features.skip_DD[size_t(layer)].defined())
      change_TD = change_TD + at::linear(frozen.mlp_input_change(layer, features.input, read_TD),
                                         features.skip_DD[size_t(layer)]);
    add(FeatureSite::mlp, layer, at_layer.mlp);
    if (own && is_feature) break;  // of the stream: its SAE is above
    if (features.split(FeatureSite::residual, layer)) change_TD = at::zeros({T, D}, options);
    add(FeatureSite::residual, layer, at_layer.after);
  }
  out.heads = heads.empty() ? at::zeros({0, H}, options) : at::stack(heads);
  out.past_attention = past.empty() ? at::zeros({0}, options) : at::stack(past);
  out.edge = edge.item<double>();
  return out;
}

}  // namespace introspect::circuits

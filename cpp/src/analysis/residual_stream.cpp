#include "introspect/analysis/residual_stream.h"

#include <algorithm>

#include "analysis/frozen_norm.h"
#include "core/on_device.h"
#include "introspect/core/check.h"

namespace introspect::analysis {

namespace {

using hooks::Point;
using models::Model;

void check_layer(const Model& model, int64_t layer, bool mlp_input) {
  const int64_t L = model.cfg().n_layers;
  check<std::out_of_range>(layer >= 0 && layer <= L, "residual stream: layer must be 0 to ", L, ", got ",
                           layer);
  check<std::invalid_argument>(
      !mlp_input || layer < L,
      "residual stream: there is no MLP after the last block: mlp_input must be false");
}

/// The norm that reads a stream.
nn::Norm norm_before(const Model& model, int64_t layer, bool mlp_input) {
  if (layer == model.cfg().n_layers) return model.ln_final();
  const auto block = model.block(layer);
  return mlp_input ? block->parts().ln2 : block->parts().ln1;
}

hooks::Site scale_before(const Model& model, int64_t layer, bool mlp_input) {
  if (layer == model.cfg().n_layers) return {Point::kLnFinalScale};
  return {mlp_input ? Point::kLn2Scale : Point::kLn1Scale, layer};
}

/// Throws ShapeError unless `sizes` broadcasts to `lead`, the dimensions of a stack between n and D.
void check_fits(const char* what, at::IntArrayRef sizes, at::IntArrayRef lead) {
  bool fits = sizes.size() <= lead.size();
  for (size_t i = 1; fits && i <= sizes.size(); ++i)
    fits = sizes[sizes.size() - i] == 1 || sizes[sizes.size() - i] == lead[lead.size() - i];
  check<ShapeError>(fits, what, " must fit the stack's ", lead, ", got ", sizes);
}

/// The components of one stream, written one after another into one tensor.
class Assembly {
 public:
  Assembly(const Model& model, const NamedActivations& activations, const StackOptions& options)
      : model_(model), activations_(activations), options_(options) {
    check_layer(model, options.layer, options.mlp_input);
    const auto& P = options.projection;
    check<ShapeError>(!P.defined() || (P.dim() == 2 && P.size(0) == model.cfg().d_model),
                      "residual stream: the projection must be [", model.cfg().d_model, ", n], got ",
                      P.defined() ? P.sizes() : at::IntArrayRef{});
    if (options.apply_ln) {
      norm_ = norm_before(model, options.layer, options.mlp_input);
      scale_ = norm_.is_none()
                   ? at::ones({1}, at::device(model.device()).dtype(model.weights().W_E.wide_dtype()))
                   : at(scale_before(model, options.layer, options.mlp_input), /*axis=*/-2);
    }
    if (P.defined())
      read_projection_ = options.apply_ln ? undivided_transpose(norm_, wide(P).to(model.device())) : P;
  }

  /// Room for n components, of the batch, positions and dtype of `like`, whose last `inner` dimensions are others.
  void reserve(int64_t n, const torch::Tensor& like, int64_t inner = 1) {
    lead_ = like.sizes().slice(0, static_cast<size_t>(like.dim() - inner)).vec();
    auto sizes = lead_;
    sizes.insert(sizes.begin(), n);
    sizes.push_back(options_.projection.defined() ? options_.projection.size(1) : model_.cfg().d_model);
    out_ = at::empty(sizes, options_.projection.defined() ? wide(like).options() : like.options());
  }

  bool cached(hooks::Site site) const { return activations_.contains(hooks::hook_name(site)); }

  /// A cached activation at the chosen positions, which run along `axis`.
  torch::Tensor at(hooks::Site site, int64_t axis) const {
    const auto found = activations_.find(hooks::hook_name(site));
    check<HookError>(found != activations_.end(), "residual stream: '", hooks::hook_name(site),
                     "' is needed and was not cached");
    const auto& positions = options_.positions;
    if (!positions.defined()) return found->second;
    const int64_t T = found->second.size(axis);
    const bool fits = positions.numel() == 0 ||
                      (positions.min().item<int64_t>() >= 0 && positions.max().item<int64_t>() < T);
    check<std::out_of_range>(fits, "residual stream: positions must be 0 to ", T - 1);
    return found->second.index_select(axis, on_device(positions, found->second.device()));
  }

  /// The stream that enters a block, or its MLP, or the unembedding.
  torch::Tensor stream(int64_t layer, bool mlp_input) const {
    if (layer == model_.cfg().n_layers) return at({Point::kResidPost, layer - 1}, -2);
    if (mlp_input && !model_.cfg().parallel_attn_mlp) return at({Point::kResidMid, layer}, -2);
    const bool from_before = layer > 0 && !cached({Point::kResidPre, layer});
    return from_before ? at({Point::kResidPost, layer - 1}, -2) : at({Point::kResidPre, layer}, -2);
  }
  torch::Tensor stream() const { return stream(options_.layer, options_.mlp_input); }

  /// The number of attention layers that have written to the stream; as many MLPs as there are blocks before it.
  int64_t attention_layers() const {
    const bool own = options_.mlp_input && !model_.cfg().parallel_attn_mlp;
    return options_.layer + (own ? 1 : 0);
  }

  void add(const torch::Tensor& x, std::string label) {
    put(through_norm(wide(x)).unsqueeze(0));
    labels_.push_back(std::move(label));
  }

  void add_embeddings() {
    add(at({Point::kEmbed}, -2), "embed");
    if (model_.weights().W_pos.defined()) add(at({Point::kPosEmbed}, -2), "pos_embed");
  }
  int64_t n_embeddings() const { return model_.weights().W_pos.defined() ? 2 : 1; }

  /// Where a layer's head results are taken from: themselves if they are cached, since a hook may have changed them.
  Point head_point(int64_t layer) const {
    return cached({Point::kResult, layer}) ? Point::kResult : Point::kZ;
  }

  void add_heads(int64_t layer) {
    const auto block = model_.block(layer);
    const auto& parts = block->parts();
    const int64_t H = parts.attn.options().n_heads;
    const Written written{parts.ln1_post, {Point::kLn1PostScale, layer}};
    if (head_point(layer) == Point::kResult) {
      auto result = wide(at({Point::kResult, layer}, -3));  // [..., H, D]
      if (written.norm) result = undivided(*written.norm, result) / at(written.scale, -2).unsqueeze(-1);
      put(through_norm(result, /*per_head=*/true).movedim(-2, 0));
    } else {
      const auto z = rows(wide(at({Point::kZ, layer}, -3)), 2);  // [N, H, K]
      const auto W_O = parts.attn.weights().O.dense();
      const auto W_HKD = W_O.view({W_O.size(0), H, -1}).permute({1, 2, 0});
      put(at::bmm((z * reciprocal(written).unsqueeze(-1)).transpose(0, 1), writing(W_HKD, written)));
    }
    for (int64_t head = 0; head < H; ++head) labels_.push_back(concat("L", layer, "H", head));
  }

  void add_neurons(int64_t layer, const torch::Tensor& neurons) {
    const auto block = model_.block(layer);
    const auto& parts = block->parts();
    check<ConfigError>(
        !parts.mlp.is_mixture(),
        "residual stream: neurons of a mixture of experts are not taken apart; what its experts write "
        "together is hook_mlp_out");
    const Written written{parts.ln2_post, {Point::kLn2PostScale, layer}};
    auto post = at({Point::kMlpPost, layer}, -2);
    auto W_MD = parts.mlp.weights().out.dense().t();
    const auto ids = neurons.defined() ? neurons : at::arange(W_MD.size(0), torch::kLong);
    if (neurons.defined()) {
      check<std::out_of_range>(
          ids.numel() == 0 || (ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < W_MD.size(0)),
          "residual stream: neurons must be 0 to ", W_MD.size(0) - 1);
      post = post.index_select(-1, on_device(ids, post.device()));
      W_MD = W_MD.index_select(0, on_device(ids, W_MD.device()));
    }
    const auto acts_M_N1 = (rows(wide(post), 1) * reciprocal(written)).t().unsqueeze(-1);
    const auto W_M1D = writing(W_MD, written).unsqueeze(1);
    auto slot = next(ids.numel());
    if (acts_M_N1.requires_grad() || W_M1D.requires_grad()) {
      slot.copy_((acts_M_N1 * W_M1D).view(slot.sizes()));
    } else {  // the one product that is as large as the result: never in a copy of its own
      auto flat = slot.view({ids.numel(), -1, slot.size(-1)});
      at::mul_out(flat, acts_M_N1, W_M1D);
    }
    for (const int64_t id :
         std::vector<int64_t>(ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + ids.numel()))
      labels_.push_back(concat("L", layer, "N", id));
  }

  void add_biases(bool include_mlp_biases) {
    auto sum = at::zeros({model_.cfg().d_model}, wide(out_).options());
    const auto plus = [&](const torch::Tensor& b, const std::optional<nn::Norm>& norm, hooks::Site scale) {
      if (!b.defined()) return;
      const auto own = b.to(sum.options());
      sum = sum + (norm ? undivided(*norm, own) / at(scale, -2) : own);
    };
    for (int64_t layer = 0; layer < attention_layers(); ++layer) {
      const auto block = model_.block(layer);
      const auto& parts = block->parts();
      plus(parts.attn.weights().O.bias(), parts.ln1_post, {Point::kLn1PostScale, layer});
      if (include_mlp_biases && layer < options_.layer &&
          !parts.mlp.is_mixture())  // experts' depend on the token
        plus(parts.mlp.weights().out.bias(), parts.ln2_post, {Point::kLn2PostScale, layer});
    }
    auto sizes = lead_;
    sizes.push_back(model_.cfg().d_model);
    add(sum.expand(sizes), "bias");
  }

  /// What the components so far leave of the stream.
  void add_remainder() {
    const auto whole = through_norm(wide(stream()));
    put((whole - out_.narrow(0, 0, next_).sum({0}, /*keepdim=*/false, whole.scalar_type())).unsqueeze(0));
    labels_.emplace_back("remainder");
  }

  Stack finish() { return {out_, std::move(labels_)}; }

 private:
  /// What stands between a layer and the stream it writes to.
  struct Written {
    const std::optional<nn::Norm>& norm;
    hooks::Site scale;
  };

  /// x [..., D] as the norm that reads the stream passes it on, and projected; with per_head x is [..., H, D].
  torch::Tensor through_norm(const torch::Tensor& x, bool per_head = false) const {
    const auto y = options_.projection.defined() ? at::matmul(x, read_projection_.to(x.options()))
                   : options_.apply_ln           ? undivided(norm_, x)
                                                 : x;
    return options_.apply_ln ? y / (per_head ? scale_.unsqueeze(-1) : scale_).to(x.options()) : y;
  }

  /// Rows [..., D] of a matrix that writes to the stream, with every norm after them but for its division.
  torch::Tensor writing(const torch::Tensor& W, const Written& written) const {
    auto rows = wide(W).to(wide(out_).options());
    if (options_.projection.defined()) {  // whose few columns are cheaper to norm than the rows
      const auto P = read_projection_.to(rows.options());
      return at::matmul(rows, written.norm ? undivided_transpose(*written.norm, P) : P);
    }
    if (written.norm) rows = undivided(*written.norm, rows);
    return options_.apply_ln ? undivided(norm_, rows) : rows;
  }

  /// The divisions that `writing` leaves out, [N, 1].
  torch::Tensor reciprocal(const Written& written) const {
    auto scale = at::ones({1, 1}, wide(out_).options());
    if (written.norm) scale = scale * rows(wide(at(written.scale, -2)), 1);
    if (options_.apply_ln && !norm_.is_none()) scale = scale * rows(wide(scale_), 1);
    return scale.reciprocal();
  }

  /// x with all but its last n dimensions made one.
  static torch::Tensor rows(const torch::Tensor& x, int64_t n) { return x.flatten(0, x.dim() - 1 - n); }

  torch::Tensor next(int64_t n) {
    const auto slot = out_.narrow(0, next_, n);
    next_ += n;
    return slot;
  }
  void put(const torch::Tensor& components) {
    auto slot = next(components.size(0));
    slot.copy_(components.reshape(slot.sizes()));
  }

  const Model& model_;
  const NamedActivations& activations_;
  const StackOptions& options_;
  nn::Norm norm_;  // that reads the stream, with apply_ln
  torch::Tensor scale_, out_;
  torch::Tensor read_projection_;  // the projection, and the weight of the norm before it

  std::vector<int64_t> lead_;
  int64_t next_ = 0;
  std::vector<std::string> labels_;
};

}  // namespace

Stack accumulated_resid(const Model& model, const NamedActivations& activations, const StackOptions& options,
                        bool incl_mid) {
  const int64_t L = model.cfg().n_layers;
  auto unnormed = options;
  unnormed.apply_ln = false;  // applied to all of them at once
  Assembly stack(model, activations, unnormed);
  const int64_t own_mid = options.mlp_input && !model.cfg().parallel_attn_mlp ? 1 : 0;
  stack.reserve(options.layer + 1 + own_mid + (incl_mid ? options.layer : 0), stack.stream(0, false));
  for (int64_t layer = 0; layer <= options.layer; ++layer) {
    stack.add(stack.stream(layer, false), layer == L ? "final_post" : concat(layer, "_pre"));
    if (layer < options.layer ? incl_mid : own_mid > 0)
      stack.add(stack.at({Point::kResidMid, layer}, -2), concat(layer, "_mid"));
  }
  auto result = stack.finish();
  if (!options.apply_ln) return result;
  const bool reads_norm =
      options.layer < L && !norm_before(model, options.layer, options.mlp_input).is_none();
  const auto scale =
      !reads_norm ? torch::Tensor{} : stack.at(scale_before(model, options.layer, options.mlp_input), -2);
  result.components = apply_norm(model, result.components, scale, options.layer, options.mlp_input);
  return result;
}

Stack decompose_resid(const Model& model, const NamedActivations& activations, const StackOptions& options,
                      Sublayers mode, bool incl_embeds) {
  Assembly stack(model, activations, options);
  const int64_t n_attn = mode == Sublayers::kMlp ? 0 : stack.attention_layers();
  const int64_t n_mlp = mode == Sublayers::kAttention ? 0 : options.layer;
  stack.reserve((incl_embeds ? stack.n_embeddings() : 0) + n_attn + n_mlp,
                incl_embeds  ? stack.at({Point::kEmbed}, -2)
                : n_attn > 0 ? stack.at({Point::kAttnOut, 0}, -2)
                : n_mlp > 0  ? stack.at({Point::kMlpOut, 0}, -2)
                             : stack.stream());
  if (incl_embeds) stack.add_embeddings();
  for (int64_t layer = 0; layer < std::max(n_attn, n_mlp); ++layer) {
    if (layer < n_attn) stack.add(stack.at({Point::kAttnOut, layer}, -2), concat(layer, "_attn_out"));
    if (layer < n_mlp) stack.add(stack.at({Point::kMlpOut, layer}, -2), concat(layer, "_mlp_out"));
  }
  return stack.finish();
}

Stack stack_head_results(const Model& model, const NamedActivations& activations, const StackOptions& options,
                         bool incl_remainder) {
  Assembly stack(model, activations, options);
  const int64_t n = stack.attention_layers();
  const int64_t n_components = n * model.cfg().n_heads + (incl_remainder ? 1 : 0);
  if (n > 0)
    stack.reserve(n_components, stack.at({stack.head_point(0), 0}, -3), /*inner=*/2);
  else
    stack.reserve(n_components, stack.stream());
  for (int64_t layer = 0; layer < n; ++layer) stack.add_heads(layer);
  if (incl_remainder) stack.add_remainder();
  return stack.finish();
}

Stack stack_neuron_results(const Model& model, const NamedActivations& activations,
                           const StackOptions& options, const torch::Tensor& neurons, bool incl_remainder) {
  Assembly stack(model, activations, options);
  const int64_t n = neurons.defined() ? neurons.numel() : model.cfg().d_mlp;
  stack.reserve(options.layer * n + (incl_remainder ? 1 : 0),
                options.layer > 0 ? stack.at({Point::kMlpPost, 0}, -2) : stack.stream());
  for (int64_t layer = 0; layer < options.layer; ++layer) stack.add_neurons(layer, neurons);
  if (incl_remainder) stack.add_remainder();
  return stack.finish();
}

Stack full_resid_decomposition(const Model& model, const NamedActivations& activations,
                               const StackOptions& options, bool expand_neurons) {
  Assembly stack(model, activations, options);
  const int64_t n_heads = stack.attention_layers() * model.cfg().n_heads;
  const int64_t n_mlp = options.layer * (expand_neurons ? model.cfg().d_mlp : 1);
  stack.reserve(n_heads + n_mlp + stack.n_embeddings() + 1, stack.at({Point::kEmbed}, -2));
  for (int64_t layer = 0; layer < stack.attention_layers(); ++layer) stack.add_heads(layer);
  for (int64_t layer = 0; layer < options.layer; ++layer) {
    if (expand_neurons)
      stack.add_neurons(layer, {});
    else
      stack.add(stack.at({Point::kMlpOut, layer}, -2), concat(layer, "_mlp_out"));
  }
  stack.add_embeddings();
  stack.add_biases(expand_neurons);
  return stack.finish();
}

torch::Tensor neuron_results(const Model& model, const NamedActivations& activations,
                             const StackOptions& options, const torch::Tensor& neurons) {
  check<std::out_of_range>(options.layer >= 0 && options.layer < model.cfg().n_layers,
                           "neuron_results: layer must be 0 to ", model.cfg().n_layers - 1, ", got ",
                           options.layer);
  StackOptions of_layer;
  of_layer.positions = options.positions;
  of_layer.projection = options.projection;
  Assembly stack(model, activations, of_layer);
  stack.reserve(neurons.defined() ? neurons.numel() : model.cfg().d_mlp,
                stack.at({Point::kMlpPost, options.layer}, -2));
  stack.add_neurons(options.layer, neurons);
  return stack.finish().components;
}

torch::Tensor head_results(const Model& model, int64_t layer, const torch::Tensor& z) {
  const auto& cfg = model.cfg();
  check<std::out_of_range>(layer >= 0 && layer < cfg.n_layers, "head_results: layer must be 0 to ",
                           cfg.n_layers - 1, ", got ", layer);
  check<ShapeError>(z.dim() >= 2 && z.size(-2) == cfg.n_heads && z.size(-1) == cfg.d_head,
                    "head_results: z must be [..., ", cfg.n_heads, ", ", cfg.d_head, "], got ", z.sizes());
  const auto block = model.block(layer);
  const auto W_O = block->parts().attn.weights().O.dense();
  const auto W_DHK = W_O.view({cfg.d_model, cfg.n_heads, cfg.d_head});
  return at::einsum("...hk,dhk->...hd", {z, W_DHK.to(z.options())});
}

torch::Tensor accumulated_bias(const Model& model, int64_t layer, bool mlp_input, bool include_mlp_biases) {
  check_layer(model, layer, mlp_input);
  auto sum =
      at::zeros({model.cfg().d_model}, at::device(model.device()).dtype(model.weights().W_E.wide_dtype()));
  const auto plus = [&](const torch::Tensor& b, const std::optional<nn::Norm>& norm) {
    if (!b.defined()) return;
    check<ConfigError>(!norm,
                       "accumulated_bias: biases pass a norm here and differ from position to position; ",
                       "full_resid_decomposition has them as a component");
    sum = sum + b;
  };
  const bool own = mlp_input && !model.cfg().parallel_attn_mlp;
  for (int64_t l = 0; l < layer + (own ? 1 : 0); ++l) {
    const auto block = model.block(l);
    const auto& parts = block->parts();
    plus(parts.attn.weights().O.bias(), parts.ln1_post);
    check<ConfigError>(!include_mlp_biases || l >= layer || !parts.mlp.is_mixture() || !model.cfg().mlp_bias,
                       "accumulated_bias: the biases of a mixture of experts differ from token to token; "
                       "include_mlp_biases must be false");
    if (include_mlp_biases && l < layer && !parts.mlp.is_mixture())
      plus(parts.mlp.weights().out.bias(), parts.ln2_post);
  }
  return sum.to(model.dtype());
}

torch::Tensor apply_norm(const Model& model, const torch::Tensor& stack, const torch::Tensor& scale,
                         int64_t layer, bool mlp_input) {
  check_layer(model, layer, mlp_input);
  check<ShapeError>(stack.dim() >= 2 && stack.size(-1) == model.cfg().d_model,
                    "apply_norm: the stack must be [n, ..., ", model.cfg().d_model, "], got ", stack.sizes());
  auto norm = norm_before(model, layer, mlp_input);
  if (norm.is_none()) return stack;
  if (scale.defined()) {
    check_fits("apply_norm: the scale", scale.sizes().slice(0, static_cast<size_t>(scale.dim() - 1)),
               stack.sizes().slice(1, static_cast<size_t>(stack.dim() - 2)));
    return (undivided(norm, wide(stack)) / scale).to(stack.scalar_type());
  }
  norm.weight = norm.weight.to(stack.device());
  if (norm.bias.defined()) norm.bias = norm.bias.to(stack.device());
  return norm.apply(stack);
}

torch::Tensor logit_attributions(const Model& model, const torch::Tensor& stack, const torch::Tensor& scale,
                                 const torch::Tensor& tokens, const torch::Tensor& incorrect_tokens) {
  const int64_t D = model.cfg().d_model, V = model.cfg().d_vocab;
  check<ShapeError>(stack.dim() >= 2 && stack.size(-1) == D,
                    "logit_attributions: the stack must be [n, ..., ", D, "], got ", stack.sizes());
  const auto direction = [&](const torch::Tensor& ids) {
    check<std::out_of_range>(
        ids.numel() > 0 && ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < V,
        "logit_attributions: tokens must be 0 to ", V - 1);
    const auto& W_U = model.weights().W_U;
    auto sizes = ids.sizes().vec();
    sizes.push_back(D);
    return W_U.gather(ids.flatten().to(W_U.device()), W_U.wide_dtype()).view(sizes);
  };
  auto direction_D = direction(tokens);
  if (incorrect_tokens.defined()) direction_D = direction_D - direction(incorrect_tokens);
  // The norm on the direction costs a row, on the stack all of them.
  const auto columns = direction_D.reshape({-1, D}).t();
  direction_D = undivided_transpose(model.weights().ln_final, columns).t().reshape(direction_D.sizes());
  direction_D = direction_D.to(wide(stack).options());

  const auto lead = stack.sizes().slice(1, static_cast<size_t>(stack.dim() - 2));
  check_fits("logit_attributions: tokens", tokens.sizes(), lead);
  check_fits("logit_attributions: the scale", scale.sizes().slice(0, static_cast<size_t>(scale.dim() - 1)),
             lead);

  constexpr int64_t kEntries = int64_t{1} << 24;  // of a wide copy of a part of the stack
  const int64_t step = std::max<int64_t>(1, kEntries / std::max<int64_t>(1, stack.numel() / stack.size(0)));
  std::vector<torch::Tensor> parts;
  for (int64_t first = 0; first < stack.size(0); first += step) {
    const auto part = wide(stack.narrow(0, first, std::min(step, stack.size(0) - first)));
    parts.push_back(direction_D.dim() == 1 ? at::matmul(part, direction_D) : (part * direction_D).sum({-1}));
  }
  return at::cat(parts) / wide(scale).to(direction_D.options()).squeeze(-1);
}

}  // namespace introspect::analysis

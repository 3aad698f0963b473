#include "circuits/decoder.h"

#include <torch/autograd.h>

#include "circuits/norms.h"
#include "core/on_device.h"
#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"
#include "introspect/ops/activation.h"
#include "introspect/ops/attention.h"
#include "introspect/ops/rotary.h"

namespace introspect::circuits {

namespace {

nn::Positions positions_of(const models::Model& model, int64_t T, bool local) {
  const auto& cfg = model.cfg();
  const auto numbers = at::arange(T, at::device(model.device()).dtype(torch::kLong)).unsqueeze(0);
  nn::Positions out;
  std::tie(out.cos, out.sin) = model.rotary_angles(numbers, local);
  if (local && cfg.window_size > 0 && T > cfg.window_size) {
    const auto real = at::ones({1, T}, at::device(model.device()).dtype(torch::kBool));
    out.mask.additive = ops::additive_mask(real, T, model.dtype(), cfg.window_size);
  }
  return out;
}

/// The matrices that the R receivers of a layer's attention read with, [R, K, D], and their biases [R, K].
struct Reading {
  torch::Tensor W_RKD, b_RK;
};

Reading reading(const nn::Attention& attention, int64_t n_groups) {
  const auto& options = attention.options();
  const int64_t H = options.n_heads, G = options.n_key_value_heads, K = options.d_head;
  const auto& linear = attention.weights().QKV;
  const auto each = [&](const torch::Tensor& rows) {
    auto heads = rows.view({H + 2 * G, K, -1});
    if (n_groups == G) return heads;
    const auto repeated = [&](int64_t first) {
      return heads.narrow(0, first, G).repeat_interleave(n_groups / G, 0);
    };
    return at::cat({heads.narrow(0, 0, H), repeated(H), repeated(H + G)});
  };
  Reading out{each(linear.dense()), {}};
  if (linear.bias().defined()) out.b_RK = each(linear.bias().unsqueeze(1)).squeeze(2);
  return out;
}

/// x [R, N, D] or [N, D] times each receiver's matrix -> [N, R, K].
torch::Tensor project_rows(const torch::Tensor& x, const Reading& with) {
  const auto W_RDK = with.W_RKD.transpose(1, 2);
  const auto y_RNK = at::matmul(x, W_RDK);
  auto y_NRK = y_RNK.transpose(0, 1);
  return with.b_RK.defined() ? y_NRK + with.b_RK : y_NRK;
}

torch::Tensor after(const std::optional<nn::Norm>& norm, const torch::Tensor& x) {
  return norm ? normed(*norm, x) : x;
}

/// What an MLP computes first: its input matrix's product; of a mixture of experts, nothing.
torch::Tensor begun(const nn::Mlp& mlp, const torch::Tensor& x) {
  return mlp.is_mixture() ? x : mlp.weights().in.forward(x);
}

/// What an MLP's output matrix reads, of what its input matrix makes.
torch::Tensor activated(const nn::Mlp& mlp, const torch::Tensor& hidden) {
  const int64_t M = mlp.d_mlp();
  if (!mlp.gated()) return ops::activate(mlp.activation(), hidden);
  return ops::gated(mlp.activation(), hidden.narrow(-1, 0, M), hidden.narrow(-1, M, M));
}

/// What an MLP writes, of what it has begun.
torch::Tensor finished(const nn::Mlp& mlp, const torch::Tensor& hidden) {
  return mlp.is_mixture() ? mlp.forward(hidden, {}) : mlp.weights().out.forward(activated(mlp, hidden));
}

/// The gradient at the input of an element of a block of the gradient g at its output f(x).
template <typename F>
torch::Tensor gradient_through(const F& f, const torch::Tensor& x, const torch::Tensor& g) {
  const at::AutoGradMode with_gradients(true);
  const auto leaf = x.detach().requires_grad_();
  const auto y = f(leaf);
  return wide(torch::autograd::grad({y}, {leaf}, {g.to(y.scalar_type())})[0]);
}

/// The gradient at what an MLP reads, of the gradient at what it writes and of what it had begun.
torch::Tensor mlp_gradient(const nn::Mlp& mlp, const torch::Tensor& hidden, const torch::Tensor& g) {
  if (mlp.is_mixture()) return gradient_through([&](const auto& x) { return mlp.forward(x, {}); }, hidden, g);
  const auto g_active = at::matmul(g, wide(mlp.weights().out.dense()));
  const auto g_hidden = gradient_through([&](const auto& h) { return activated(mlp, h); }, hidden, g_active);
  return at::matmul(g_hidden, wide(mlp.weights().in.dense()));
}

/// The gradient at what a half of a block computed, of the gradient at the stream that it was added to.
torch::Tensor before_norm(const std::optional<nn::Norm>& norm, const torch::Tensor& written,
                          const torch::Tensor& g) {
  return norm ? norm_gradient(*norm, wide(written), g) : g;
}

}  // namespace

Decoder::Decoder(const models::Model& model, const Nodes& nodes, int64_t n_tokens)
    : model_(model), nodes_(nodes) {
  for (int64_t layer = 0; layer < nodes.n_layers; ++layer)
    check<ConfigError>(model.device(layer) == model.device(),
                       "circuits: the blocks of the model must live on one device, got ", model.device(layer),
                       " and ", model.device());
  check<ShapeError>(n_tokens <= model.cfg().n_ctx,
                    "circuits: a prompt has at most n_ctx = ", model.cfg().n_ctx, " tokens, got ", n_tokens);
  global_ = positions_of(model, n_tokens, /*local=*/false);
  if (!model.cfg().attn_types.empty()) local_ = positions_of(model, n_tokens, /*local=*/true);
  if (model.weights().W_pos.defined()) positions_embedding_TD_ = model.weights().W_pos.narrow(0, 0, n_tokens);
}

torch::Tensor Decoder::embedded(const torch::Tensor& tokens_BT) const {
  const auto& cfg = model_.cfg();
  const auto x_BTD = model_.weights().W_E.gather(on_device(tokens_BT, model_.device()));
  return cfg.embed_scale == 1 ? x_BTD : x_BTD * at::full({}, cfg.embed_scale, x_BTD.options());
}

torch::Tensor Decoder::stream_of(const torch::Tensor& embedded_BTD) const {
  return positions_embedding_TD_.defined() ? embedded_BTD + positions_embedding_TD_ : embedded_BTD;
}

torch::Tensor Decoder::project(int64_t layer, const torch::Tensor& x_BTD) const {
  const auto block = parts(layer);
  const auto& attention = block->parts().attn;
  const auto& options = attention.options();
  const int64_t H = options.n_heads, G = options.n_key_value_heads;
  const auto qkv = attention.weights()
                       .QKV.forward(normed(block->parts().ln1, x_BTD))
                       .view({x_BTD.size(0), x_BTD.size(1), H + 2 * G, options.d_head});
  if (nodes_.n_groups == G) return qkv;
  const auto repeated = [&](int64_t first) {
    return qkv.narrow(2, first, G).repeat_interleave(nodes_.n_groups / G, 2);
  };
  return at::cat({qkv.narrow(2, 0, H), repeated(H), repeated(H + G)}, 2);
}

torch::Tensor Decoder::project_each(int64_t layer, const torch::Tensor& x_RBTD) const {
  const auto block = parts(layer);
  const auto with = reading(block->parts().attn, nodes_.n_groups);
  const auto x = normed(block->parts().ln1, x_RBTD).flatten(1, 2);
  return project_rows(x, with).unflatten(0, {x_RBTD.size(1), x_RBTD.size(2)});
}

torch::Tensor Decoder::project_some(int64_t layer, const torch::Tensor& x_BTD, int64_t first,
                                    int64_t n) const {
  const auto block = parts(layer);
  auto with = reading(block->parts().attn, nodes_.n_groups);
  with.W_RKD = with.W_RKD.narrow(0, first, n);
  if (with.b_RK.defined()) with.b_RK = with.b_RK.narrow(0, first, n);
  const auto x = normed(block->parts().ln1, x_BTD).flatten(0, 1);
  return project_rows(x, with).unflatten(0, {x_BTD.size(0), x_BTD.size(1)});
}

Decoder::Qkv Decoder::qkv(int64_t layer, const torch::Tensor& qkv_BTRK) const {
  const auto block = parts(layer);
  const auto& attention = block->parts().attn;
  const auto& positions = positions_at(layer);
  const int64_t H = attention.options().n_heads, n = nodes_.n_groups;
  Qkv out{qkv_BTRK.narrow(2, 0, H), qkv_BTRK.narrow(2, H, n), qkv_BTRK.narrow(2, H + n, n)};
  if (attention.weights().q_norm) {
    out.q_BTHK = normed(*attention.weights().q_norm, out.q_BTHK);
    out.k_BTGK = normed(*attention.weights().k_norm, out.k_BTGK);
  }
  if (positions.cos.defined()) {
    out.q_BTHK = ops::apply_rotary(out.q_BTHK, positions.cos, positions.sin);
    out.k_BTGK = ops::apply_rotary(out.k_BTGK, positions.cos, positions.sin);
  }
  return out;
}

torch::Tensor Decoder::attend(int64_t layer, const torch::Tensor& qkv_BTRK) const {
  const auto [q, k, v] = qkv(layer, qkv_BTRK);
  return parts(layer)->parts().attn.attend(q, k.transpose(1, 2), v.transpose(1, 2), positions_at(layer).mask);
}

torch::Tensor Decoder::attention_out(int64_t layer, const torch::Tensor& z_BTHK) const {
  const auto block = parts(layer);
  return after(block->parts().ln1_post, block->parts().attn.weights().O.forward(z_BTHK.flatten(2)));
}

Decoder::Heads Decoder::heads(int64_t layer, const torch::Tensor& z_BTHK) const {
  const auto block = parts(layer);
  const auto& O = block->parts().attn.weights().O;
  const auto& post = block->parts().ln1_post;
  const int64_t B = z_BTHK.size(0), T = z_BTHK.size(1), H = nodes_.n_heads, K = z_BTHK.size(3);
  const auto W_HKD = O.dense().view({-1, H, K}).permute({1, 2, 0});
  auto each = at::bmm(z_BTHK.flatten(0, 1).transpose(0, 1), W_HKD).view({H, B, T, -1});
  auto out = O.forward(z_BTHK.flatten(2));
  if (!post) return {out, each};
  each = normed_part(*post, wide(each), wide(out)).to(each.scalar_type());
  return {normed(*post, out), each};
}

torch::Tensor Decoder::mlp_out(int64_t layer, const torch::Tensor& x_BTD) const {
  const auto block = parts(layer);
  const auto& mlp = block->parts().mlp;
  return after(block->parts().ln2_post, finished(mlp, begun(mlp, normed(block->parts().ln2, x_BTD))));
}

torch::Tensor Decoder::mlp_half(int64_t layer, const torch::Tensor& x_pre_BTD,
                                const torch::Tensor& x_mid_BTD) const {
  return x_mid_BTD + mlp_out(layer, nodes_.parallel ? x_pre_BTD : x_mid_BTD);
}

torch::Tensor Decoder::block(int64_t layer, const torch::Tensor& x_BTD) const {
  return mlp_half(layer, x_BTD, x_BTD + attention_out(layer, attend(layer, project(layer, x_BTD))));
}

Decoder::Run Decoder::run(const torch::Tensor& tokens_BT, bool keep_streams) const {
  const at::NoGradGuard no_grad;
  const auto input = embedded(tokens_BT);
  Run out;
  auto sizes = input.sizes().vec();
  sizes.insert(sizes.begin(), nodes_.n_senders());
  out.senders = at::empty(sizes, input.options());
  out.senders[0].copy_(input);
  auto x = stream_of(input);
  for (int64_t layer = 0; layer < n_layers(); ++layer) {
    check_interrupt();
    if (keep_streams) out.streams.push_back(x);
    const auto attention = heads(layer, attend(layer, project(layer, x)));
    out.senders.narrow(0, nodes_.head(layer, 0), nodes_.n_heads).copy_(attention.each_HBTD);
    const auto mid = x + attention.out_BTD;
    const auto mlp = mlp_out(layer, nodes_.parallel ? x : mid);
    out.senders[nodes_.mlp(layer)].copy_(mlp);
    x = mid + mlp;
  }
  out.streams.push_back(x);
  return out;
}

Decoder::Trace Decoder::trace(const torch::Tensor& x_BTD, int64_t first_layer, bool from_mlp,
                              const torch::Tensor& x_pre_BTD) const {
  const at::NoGradGuard no_grad;
  Trace out;
  out.first_layer = first_layer;
  auto x = x_BTD;
  for (int64_t layer = first_layer; layer < n_layers(); ++layer) {
    check_interrupt();
    const auto block = parts(layer);
    const auto& [ln1, attn, ln1_post, ln2, mlp, ln2_post, parallel] = block->parts();
    Trace::Layer kept;
    auto mid = x;
    if (from_mlp && layer == first_layer) {
      kept.x_mlp = parallel ? x_pre_BTD : mid;
    } else {
      kept.x_attention = x;
      kept.qkv = project(layer, x);
      kept.attention = attn.weights().O.forward(attend(layer, kept.qkv).flatten(2));
      mid = x + after(ln1_post, kept.attention);
      kept.x_mlp = parallel ? x : mid;
    }
    kept.hidden = begun(mlp, normed(ln2, kept.x_mlp));
    kept.mlp = finished(mlp, kept.hidden);
    x = mid + after(ln2_post, kept.mlp);
    if (!ln1_post) kept.attention = torch::Tensor();
    if (!ln2_post) kept.mlp = torch::Tensor();
    out.layers.push_back(std::move(kept));
  }
  out.last_BTD = x;
  return out;
}

void Decoder::backward(Trace& trace, const torch::Tensor& g_BTD,
                       const std::function<void(int64_t, const torch::Tensor&)>& visit) const {
  const at::NoGradGuard no_grad;
  auto g = wide(g_BTD);
  visit(nodes_.logits(), g.unsqueeze(0));
  while (!trace.layers.empty()) {
    check_interrupt();
    const int64_t layer = trace.first_layer + static_cast<int64_t>(trace.layers.size()) - 1;
    const auto kept = std::move(trace.layers.back());
    trace.layers.pop_back();
    const auto block = parts(layer);
    const auto& [ln1, attn, ln1_post, ln2, mlp, ln2_post, parallel] = block->parts();

    const auto g_mlp = norm_gradient(ln2, wide(kept.x_mlp),
                                     mlp_gradient(mlp, kept.hidden, before_norm(ln2_post, kept.mlp, g)));
    visit(nodes_.mlp_reader(layer), g_mlp.unsqueeze(0));
    if (!kept.qkv.defined()) return;

    const auto g_out = before_norm(ln1_post, kept.attention, parallel ? g : g + g_mlp);
    const auto g_z = at::matmul(g_out, wide(attn.weights().O.dense())).unflatten(2, {nodes_.n_heads, -1});
    const auto g_qkv = gradient_through([&](const auto& qkv) { return attend(layer, qkv); }, kept.qkv, g_z);
    const auto W_RKD = wide(reading(attn, nodes_.n_groups).W_RKD);
    const auto g_normed =
        at::bmm(g_qkv.flatten(0, 1).transpose(0, 1), W_RKD).unflatten(1, {g.size(0), g.size(1)});
    const auto g_read = norm_gradient(ln1, wide(kept.x_attention), g_normed);
    visit(nodes_.first_reader(layer), g_read);
    g = g + g_mlp + g_read.sum(0);
  }
}

}  // namespace introspect::circuits

#include "introspect/models/model.h"

#include <unordered_set>

#include "introspect/core/check.h"
#include "introspect/ops/linear.h"
#include "introspect/ops/norm.h"
#include "introspect/ops/rotary.h"

namespace introspect::models {

namespace {

/// Takes back what a pass has appended to its cache unless the pass gets to its end.
class AppendGuard {
 public:
  explicit AppendGuard(cache::KVCache* cache) : cache_(cache) {}
  ~AppendGuard() {
    if (cache_) cache_->rollback();
  }
  void commit(int64_t n, const torch::Tensor& mask_BT) {
    if (cache_) cache_->commit(n, mask_BT);
    cache_ = nullptr;
  }

 private:
  cache::KVCache* cache_;
};

/// True where a key is a real token: the cache's positions, then this pass's; undefined if all are.
torch::Tensor real_keys(const ForwardOptions& options, const torch::Tensor& tokens_BT, int64_t offset) {
  const bool cached_padding = options.cache && options.cache->mask().defined();
  if (!options.attention_mask.defined() && !cached_padding) return {};
  const auto device = tokens_BT.device();
  const auto ones = [&](int64_t t) {
    return at::ones({tokens_BT.size(0), t}, at::device(device).dtype(torch::kBool));
  };
  const auto now = options.attention_mask.defined() ? options.attention_mask.to(device, torch::kBool)
                                                    : ones(tokens_BT.size(1));
  if (offset == 0) return now;
  return at::cat({cached_padding ? options.cache->mask().to(device) : ones(offset), now}, 1);
}

/// The rotary position of each token: its number among the real tokens of its row.
torch::Tensor rotary_positions(const torch::Tensor& real_BS, int64_t offset, int64_t T,
                               torch::Device device) {
  if (!real_BS.defined())
    return at::arange(offset, offset + T, at::device(device).dtype(torch::kLong)).unsqueeze(0);
  return (real_BS.to(torch::kLong).cumsum(1) - 1).clamp_min(0).narrow(1, offset, T);
}

/// Column of the last real token of each row [B].
torch::Tensor last_real_column(const torch::Tensor& mask_BT) {
  const int64_t T = mask_BT.size(1);
  const auto columns = at::arange(T, mask_BT.options().dtype(torch::kLong));
  return at::where(mask_BT, columns, at::full({}, -1, columns.options())).amax(1);
}

}  // namespace

Model::Model(Config cfg, Weights weights, std::optional<text::Tokenizer> tokenizer,
             std::optional<text::ChatTemplate> chat_template, std::string hash)
    : cfg_(std::move(cfg)),
      weights_(std::move(weights)),
      tokenizer_(std::move(tokenizer)),
      chat_template_(std::move(chat_template)),
      hash_(std::move(hash)) {
  cfg_.validate();
  check<ShapeError>(static_cast<int64_t>(weights_.blocks.size()) == cfg_.n_layers, "Model: the config has ",
                    cfg_.n_layers, " layers, the weights ", weights_.blocks.size());
}

namespace {

/// Calls `visit` once for every tensor of the model.
template <typename Visit>
void for_each_weight(const Weights& weights, const Visit& visit) {
  std::unordered_set<const void*> seen;
  const auto once = [&](const torch::Tensor& t) {
    if (t.defined() && seen.insert(t.const_data_ptr()).second) visit(t);
  };
  for (const auto& block : weights.blocks) {
    const auto& attn = block.attn().weights();
    const auto& mlp = block.mlp().weights();
    for (const auto& t : {attn.W_QKV, attn.b_QKV, attn.W_O, attn.b_O, mlp.W_gate_in, mlp.b_gate_in, mlp.W_out,
                          mlp.b_out, block.ln1().weight, block.ln2().weight})
      once(t);
  }
  for (const auto& t : {weights.W_E, weights.W_U, weights.ln_final.weight}) once(t);
}

}  // namespace

int64_t Model::n_params() const {
  int64_t n = 0;
  for_each_weight(weights_, [&](const torch::Tensor& t) { n += t.numel(); });
  return n;
}

int64_t Model::nbytes() const {
  int64_t n = 0;
  for_each_weight(weights_, [&](const torch::Tensor& t) { n += static_cast<int64_t>(t.nbytes()); });
  return n;
}

const text::Tokenizer& Model::tokenizer() const {
  check<ConfigError>(
      tokenizer_.has_value(), "model '", cfg_.model_name,
      "': text needs a tokenizer, and there was none beside the weights (tokenizer.json or tokenizer.model)");
  return *tokenizer_;
}

const text::ChatTemplate& Model::chat_template() const {
  check<ConfigError>(
      chat_template_.has_value(), "model '", cfg_.model_name,
      "': no chat template was found beside the weights; give one in LoadOptions::chat_template");
  return *chat_template_;
}

torch::Tensor Model::to_tokens(const std::string& text) const {
  auto ids = tokenizer().encode(text, /*add_special_tokens=*/true);
  // A chat template writes BOS itself: never twice.
  const auto bos = tokenizer().bos_token_id();
  if (tokenizer().adds_bos() && ids.size() > 1 && ids[0] == bos && ids[1] == bos) ids.erase(ids.begin());
  return torch::tensor(ids, torch::kLong).unsqueeze(0);
}

cache::KVCache Model::make_cache(int64_t batch) const {
  return {{cfg_.n_layers, batch, cfg_.n_key_value_heads, cfg_.d_head}, dtype(), device()};
}

void Model::check_tokens(const torch::Tensor& tokens_BT, const ForwardOptions& options) const {
  check<ShapeError>(tokens_BT.dim() == 2 && tokens_BT.numel() > 0 && tokens_BT.scalar_type() == torch::kLong,
                    "Model::forward: tokens must be int64 [batch, pos] and not empty, got ",
                    tokens_BT.scalar_type(), " ", tokens_BT.sizes());
  const int64_t B = tokens_BT.size(0), T = tokens_BT.size(1);
  const auto [low, high] = at::aminmax(tokens_BT);
  check<std::out_of_range>(low.item<int64_t>() >= 0 && high.item<int64_t>() < cfg_.d_vocab,
                           "Model::forward: token ids must be 0 to ", cfg_.d_vocab - 1, ", got ",
                           low.item<int64_t>(), " to ", high.item<int64_t>());
  if (const auto* cache = options.cache) {
    const cache::KVCache::Shape wanted = {cfg_.n_layers, B, cfg_.n_key_value_heads, cfg_.d_head};
    check<ShapeError>(cache->shape() == wanted && cache->dtype() == dtype() && cache->device() == device(),
                      "Model::forward: the cache must be for ", wanted.n_layers, " layers, batch ", B, ", ",
                      wanted.n_key_value_heads, " heads of ", wanted.d_head, ", ", dtype(), "; got ",
                      cache->shape().n_layers, " layers, batch ", cache->shape().batch, ", ",
                      cache->shape().n_key_value_heads, " heads of ", cache->shape().d_head, ", ",
                      cache->dtype());
  }
  const int64_t offset = options.cache ? options.cache->length() : 0;
  check<ShapeError>(offset + T <= cfg_.n_ctx, "Model::forward: at most n_ctx = ", cfg_.n_ctx,
                    " positions, got ", offset + T);
  const auto& mask = options.attention_mask;
  check<ShapeError>(!mask.defined() || mask.sizes() == tokens_BT.sizes(),
                    "Model::forward: attention_mask must be ", tokens_BT.sizes(), " as the tokens are, got ",
                    mask.defined() ? mask.sizes() : at::IntArrayRef{});
  check<ShapeError>(!mask.defined() || mask.to(torch::kBool).any(1).all().item<bool>(),
                    "Model::forward: every row of attention_mask must hold a real token");
  if (options.logits_at == LogitsAt::kPositions) {
    const auto& positions = options.positions;
    check<ShapeError>(positions.defined() && positions.dim() == 1 && positions.numel() > 0,
                      "Model::forward: positions must be int64 [n] when logits are read at positions");
    check<std::out_of_range>(positions.min().item<int64_t>() >= 0 && positions.max().item<int64_t>() < T,
                             "Model::forward: positions must be 0 to ", T - 1, ", got ",
                             positions.min().item<int64_t>(), " to ", positions.max().item<int64_t>());
  }
  check<std::out_of_range>(
      !options.stop_at_layer || (*options.stop_at_layer >= 0 && *options.stop_at_layer <= cfg_.n_layers),
      "Model::forward: stop_at_layer must be 0 to ", cfg_.n_layers, ", got ",
      options.stop_at_layer.value_or(0));
  check<std::invalid_argument>(!options.stop_at_layer || !options.cache,
                               "Model::forward: a pass that stops at a layer cannot fill a cache");
}

torch::Tensor Model::forward(const torch::Tensor& tokens_BT, const ForwardOptions& options) const {
  check_tokens(tokens_BT, options);
  const int64_t T = tokens_BT.size(1);
  const auto tokens = tokens_BT.to(device());
  nn::Context ctx;
  ctx.hooks = options.hooks && !options.hooks->empty() ? options.hooks : nullptr;
  ctx.cache = options.cache;
  ctx.offset = options.cache ? options.cache->length() : 0;
  const auto real_BS = real_keys(options, tokens, ctx.offset);
  if (real_BS.defined()) ctx.mask.additive = ops::additive_mask(real_BS, T, dtype());
  std::tie(ctx.cos_BTK2, ctx.sin_BTK2) = ops::rotary_angles(
      rotary_positions(real_BS, ctx.offset, T, device()), weights_.rotary_frequencies, dtype());

  AppendGuard appended(options.cache);
  auto x_BTD = ctx.hook(hooks::Point::kEmbed, at::embedding(weights_.W_E, tokens));
  const int64_t last_layer = options.stop_at_layer.value_or(cfg_.n_layers);
  for (ctx.layer = 0; ctx.layer < last_layer; ++ctx.layer)
    x_BTD = weights_.blocks[static_cast<size_t>(ctx.layer)].forward(x_BTD, ctx);
  appended.commit(T, options.attention_mask);
  ctx.layer = -1;
  if (options.stop_at_layer) return {};
  return logits(x_BTD, options, ctx);
}

torch::Tensor Model::logits(const torch::Tensor& resid_BTD, const ForwardOptions& options,
                            const nn::Context& ctx) const {
  const bool final_norm_hooked =
      ctx.hooks && (ctx.wants(hooks::Point::kLnFinalScale) || ctx.wants(hooks::Point::kLnFinalNormalized));
  const auto normalized_BTD = options.logits_at == LogitsAt::kAll || final_norm_hooked
                                  ? weights_.ln_final.forward(resid_BTD, ctx)
                                  : torch::Tensor{};
  switch (options.logits_at) {
    case LogitsAt::kNone:
      return {};
    case LogitsAt::kAll: {
      const auto W_U = options.vocab_ids.defined()
                           ? weights_.W_U.index_select(0, options.vocab_ids.to(device()))
                           : weights_.W_U;
      const auto logits = ops::linear(normalized_BTD, W_U, {});
      return dtype() == torch::kFloat64 ? logits : logits.to(torch::kFloat32);
    }
    case LogitsAt::kLast: {
      if (!options.attention_mask.defined()) return readout(resid_BTD.slice(1, -1), options.vocab_ids);
      const auto column_B = last_real_column(options.attention_mask.to(device(), torch::kBool));
      const auto index_B1D = column_B.view({-1, 1, 1}).expand({-1, 1, cfg_.d_model});
      return readout(resid_BTD.gather(1, index_B1D), options.vocab_ids);
    }
    case LogitsAt::kPositions:
      return readout(resid_BTD.index_select(1, options.positions.to(device())), options.vocab_ids);
  }
  throw Error("Model::logits: unknown LogitsAt");
}

torch::Tensor Model::readout(const torch::Tensor& resid, const torch::Tensor& vocab_ids) const {
  check<ShapeError>(resid.dim() > 0 && resid.size(-1) == cfg_.d_model,
                    "Model::readout: residuals must be [..., ", cfg_.d_model, "], got ", resid.sizes());
  if (vocab_ids.defined() && vocab_ids.numel() > 0)
    check<std::out_of_range>(
        vocab_ids.min().item<int64_t>() >= 0 && vocab_ids.max().item<int64_t>() < cfg_.d_vocab,
        "Model::readout: vocabulary ids must be 0 to ", cfg_.d_vocab - 1, ", got ",
        vocab_ids.min().item<int64_t>(), " to ", vocab_ids.max().item<int64_t>());
  const auto wide = dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto W_U = vocab_ids.defined() ? weights_.W_U.index_select(0, vocab_ids.to(device())) : weights_.W_U;
  const auto x_ND = ops::rms_norm(resid.reshape({-1, cfg_.d_model}).to(device(), wide),
                                  weights_.ln_final.weight.to(wide), weights_.ln_final.eps);
  const auto logits_NV = wide == torch::kFloat64 ? at::linear(x_ND, W_U) : ops::linear_fp32(x_ND, W_U);
  auto sizes = resid.sizes().vec();
  sizes.back() = W_U.size(0);
  return logits_NV.view(sizes);
}

}  // namespace introspect::models

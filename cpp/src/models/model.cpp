#include "introspect/models/model.h"

#include <algorithm>

#include "core/dense.h"
#include "core/on_device.h"
#include "core/stages.h"
#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"
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
torch::Tensor real_keys(const ForwardOptions& options, const torch::Tensor& input, int64_t offset) {
  const bool cached_padding = options.cache && options.cache->mask().defined();
  if (!options.attention_mask.defined() && !cached_padding) return {};
  const auto device = input.device();
  const auto ones = [&](int64_t t) {
    return at::ones({input.size(0), t}, at::device(device).dtype(torch::kBool));
  };
  const auto now = options.attention_mask.defined()
                       ? on_device(options.attention_mask, device).to(torch::kBool)
                       : ones(input.size(1));
  if (offset == 0) return now;
  return at::cat({cached_padding ? options.cache->mask().to(device) : ones(offset), now}, 1);
}

/// The position of each token: its number among the real tokens of its row.
torch::Tensor token_positions(const torch::Tensor& real_BS, int64_t offset, int64_t T, torch::Device device) {
  if (!real_BS.defined())
    return at::arange(offset, offset + T, at::device(device).dtype(torch::kLong)).unsqueeze(0);
  return (real_BS.to(torch::kLong).cumsum(1) - 1).clamp_min(0).narrow(1, offset, T);
}

struct TokenTree {
  torch::Tensor depths_T;   // int64
  torch::Tensor parents_S;  // int32, the path of the cache first
};

/// Throws std::out_of_range unless every parent comes before its child, and ShapeError if a path is longer than n_ctx.
TokenTree token_tree(const torch::Tensor& parents_T, int64_t n_path, int64_t n_ctx) {
  const auto parents = parents_T.to(torch::kCPU, torch::kLong).contiguous();
  const int64_t T = parents.size(0), S = n_path + T;
  TokenTree out{at::empty({T}, torch::kLong), at::empty({S}, torch::kInt)};
  const int64_t* given = parents.const_data_ptr<int64_t>();
  int32_t* all = out.parents_S.mutable_data_ptr<int32_t>();
  int64_t* depths = out.depths_T.mutable_data_ptr<int64_t>();
  for (int64_t s = 0; s < n_path; ++s) all[s] = static_cast<int32_t>(s - 1);
  for (int64_t t = 0; t < T; ++t) {
    const int64_t parent = given[t];
    check<std::out_of_range>(parent >= -1 && parent < n_path + t, "Model::forward: the parent of token ", t,
                             " must come before it, got ", parent);
    all[n_path + t] = static_cast<int32_t>(parent);
    depths[t] = parent < n_path ? parent + 1 : depths[parent - n_path] + 1;
    check<ShapeError>(depths[t] < n_ctx, "Model::forward: at most n_ctx = ", n_ctx,
                      " positions on a path, got ", depths[t] + 1);
  }
  return out;
}

/// What hooks that depend on the text may know of it.
hooks::Text known_text(const ForwardOptions& options, const torch::Tensor& input,
                       const torch::Tensor& real_BS, int64_t offset) {
  hooks::Text out;
  if (real_BS.defined()) out.real_BS = real_BS.cpu();
  out.n_prompt = options.n_prompt;
  if (!options.cache && !out.n_prompt) out.n_prompt = input.size(1);
  if (options.start_at_layer) return out;
  out.tokens_BS = input.cpu();
  out.first_token = offset;
  if (offset == 0 || !options.history.defined()) return out;
  out.tokens_BS = at::cat({options.history.to(torch::kCPU, torch::kLong), out.tokens_BS}, 1);
  out.first_token = 0;
  return out;
}

/// c * tanh(x / c), or x for c = 0.
torch::Tensor soft_capped(const torch::Tensor& x, double c) {
  return c > 0 ? (x / c).tanh() * c : x;
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
  const auto n_layers = static_cast<size_t>(cfg_.n_layers);
  check<ShapeError>(weights_.read_block || weights_.blocks.size() == n_layers, "Model: the config has ",
                    n_layers, " layers, the weights ", weights_.blocks.size());
  check<ShapeError>(weights_.block_devices.empty() || weights_.block_devices.size() == n_layers,
                    "Model: the config has ", n_layers, " layers, and devices are given for ",
                    weights_.block_devices.size());
}

std::shared_ptr<const Model> Model::derived(Config cfg, Weights weights, std::string hash) const {
  return std::make_shared<const Model>(std::move(cfg), std::move(weights), tokenizer_, chat_template_,
                                       std::move(hash));
}

const Weights& Model::weights() const {
  return weights_;
}

std::shared_ptr<const nn::Block> Model::block(int64_t layer) const {
  if (weights_.read_block) {
    check_interrupt();  // a pass over a large file takes minutes
    return std::make_shared<const nn::Block>(weights_.read_block(layer));
  }
  return {std::shared_ptr<const void>(), &weights_.blocks[static_cast<size_t>(layer)]};
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
      "': no chat template was found beside the weights; give one as chat_template when you load the model");
  return *chat_template_;
}

torch::Tensor Model::to_tokens(const std::string& text) const {
  auto ids = tokenizer().encode(text, /*add_special_tokens=*/true);
  // A chat template writes BOS itself: never twice.
  const auto bos = tokenizer().bos_token_id();
  if (tokenizer().adds_bos() && ids.size() > 1 && ids[0] == bos && ids[1] == bos) ids.erase(ids.begin());
  return torch::tensor(ids, torch::kLong).unsqueeze(0);
}

cache::KVCache Model::make_cache(int64_t batch, std::optional<int64_t> stop_at_layer) const {
  const int64_t n_layers = stop_at_layer.value_or(cfg_.n_layers);
  auto devices = weights_.block_devices;
  if (!devices.empty() && n_layers >= 0 && n_layers < cfg_.n_layers)
    devices.erase(devices.begin() + n_layers, devices.end());
  return {{n_layers, batch, cfg_.n_key_value_heads, cfg_.d_head}, dtype(), device(), devices};
}

void Model::check_input(const torch::Tensor& input, const ForwardOptions& options) const {
  check_dense<ShapeError>(input, "Model::forward: the input");
  const auto check_integers = [](const char* name, const torch::Tensor& t, bool or_bool) {
    if (!t.defined()) return;
    check_dense<ShapeError>(t, "Model::forward: ", name);
    check<ShapeError>(at::isIntegralType(t.scalar_type(), or_bool), "Model::forward: ", name, " must hold ",
                      or_bool ? "truths or integers" : "integers", ", got ", t.scalar_type());
  };
  check_integers("attention_mask", options.attention_mask, /*or_bool=*/true);
  check_integers("history", options.history, false);
  check_integers("positions", options.positions, false);
  check_integers("parents", options.parents, false);
  check_integers("vocab_ids", options.vocab_ids, false);
  if (const auto& ids = options.vocab_ids; ids.defined()) {
    check<ShapeError>(ids.dim() == 1, "Model::forward: vocab_ids must be int64 [n], got ", ids.sizes());
    check<std::out_of_range>(
        ids.numel() == 0 || (ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < cfg_.d_vocab),
        "Model::forward: vocab_ids must be 0 to ", cfg_.d_vocab - 1);
  }
  if (options.start_at_layer) {
    check<std::out_of_range>(*options.start_at_layer >= 0 && *options.start_at_layer <= cfg_.n_layers,
                             "Model::forward: start_at_layer must be 0 to ", cfg_.n_layers, ", got ",
                             *options.start_at_layer);
    check<ShapeError>(input.dim() == 3 && input.numel() > 0 && input.size(2) == cfg_.d_model &&
                          input.scalar_type() == dtype(),
                      "Model::forward: with start_at_layer the input must be a residual ", dtype(),
                      " [batch, pos, ", cfg_.d_model, "], got ", input.scalar_type(), " ", input.sizes());
  } else {
    check<ShapeError>(input.dim() == 2 && input.numel() > 0 && input.scalar_type() == torch::kLong,
                      "Model::forward: tokens must be int64 [batch, pos] and not empty, got ",
                      input.scalar_type(), " ", input.sizes());
    const auto ids = input.cpu().contiguous();
    const auto* first = ids.const_data_ptr<int64_t>();
    const auto [low, high] = std::minmax_element(first, first + ids.numel());
    check<std::out_of_range>(*low >= 0 && *high < cfg_.d_vocab, "Model::forward: token ids must be 0 to ",
                             cfg_.d_vocab - 1, ", got ", *low, " to ", *high);
  }
  const int64_t B = input.size(0), T = input.size(1);
  if (const auto* cache = options.cache) {
    const cache::KVCache::Shape wanted = {options.stop_at_layer.value_or(cfg_.n_layers), B,
                                          cfg_.n_key_value_heads, cfg_.d_head};
    check<ShapeError>(cache->shape() == wanted && cache->dtype() == dtype() && cache->device() == device(),
                      "Model::forward: the cache must be for ", wanted.n_layers, " layers, batch ", B, ", ",
                      wanted.n_key_value_heads, " heads of ", wanted.d_head, ", ", dtype(), "; got ",
                      cache->shape().n_layers, " layers, batch ", cache->shape().batch, ", ",
                      cache->shape().n_key_value_heads, " heads of ", cache->shape().d_head, ", ",
                      cache->dtype());
  }
  const int64_t offset = options.cache ? options.cache->length() : 0;
  const auto& history = options.history;
  check<ShapeError>(
      !history.defined() || (history.dim() == 2 && history.size(0) == B && history.size(1) == offset),
      "Model::forward: history must be the tokens of the cache [", B, ", ", offset, "], got ",
      history.defined() ? history.sizes() : at::IntArrayRef{});
  if (options.parents.defined())
    check<ShapeError>(
        B == 1 && options.parents.dim() == 1 && options.parents.size(0) == T &&
            !options.attention_mask.defined(),
        "Model::forward: a token tree must be [1, pos] without padding, with as many parents, got batch ", B,
        ", ", T, " tokens and ", options.parents.sizes(), " parents");
  else
    check<ShapeError>(offset + T <= cfg_.n_ctx, "Model::forward: at most n_ctx = ", cfg_.n_ctx,
                      " positions, got ", offset + T);
  const auto& mask = options.attention_mask;
  check<ShapeError>(!mask.defined() || (mask.dim() == 2 && mask.size(0) == B && mask.size(1) == T),
                    "Model::forward: attention_mask must be [", B, ", ", T, "] as the input is, got ",
                    mask.defined() ? mask.sizes() : at::IntArrayRef{});
  check<ShapeError>(!mask.defined() || mask.cpu().to(torch::kBool).any(1).all().item<bool>(),
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
  check<std::invalid_argument>(!options.cache || options.start_at_layer.value_or(0) == 0,
                               "Model::forward: a pass that starts at a layer cannot fill a cache");
  check<std::invalid_argument>(
      options.start_at_layer.value_or(0) <= options.stop_at_layer.value_or(cfg_.n_layers),
      "Model::forward: start_at_layer must not be above stop_at_layer, got ",
      options.start_at_layer.value_or(0), " and ", options.stop_at_layer.value_or(cfg_.n_layers));
  check<HookError>(
      !options.hooks || !options.hooks->has_backward() || at::GradMode::is_enabled(),
      "Model::forward: backward hooks need gradients, and they are switched off (torch.no_grad)");
}

nn::Positions Model::positions_in_tree(const torch::Tensor& depths_T, const torch::Tensor& parents_S,
                                       bool local) const {
  auto out = positions(depths_T.unsqueeze(0), {}, /*n_keys=*/0, local);
  out.mask.parents = parents_S;
  out.mask.window = local ? cfg_.window_size : 0;
  if (device().is_cpu()) return out;
  // Kernels of other devices know no trees: one mask for the pass, where every layer would make its own.
  const auto rows = at::arange(depths_T.size(0), at::device(device()).dtype(torch::kLong));
  out.mask = ops::mask_of_rows(out.mask, rows, rows.size(0), parents_S.size(0), dtype());
  return out;
}

nn::Positions Model::positions(const torch::Tensor& positions_BT, const torch::Tensor& real_BS,
                               int64_t n_keys, bool local) const {
  nn::Positions out;
  std::tie(out.cos, out.sin) = rotary_angles(positions_BT, local);
  const int64_t window = local ? cfg_.window_size : 0;
  const bool window_bites = window > 0 && n_keys > window;
  // The kernels of other devices know a causal mask only where queries and keys are as many: it is made once, not in
  // every layer.
  const int64_t T = positions_BT.size(1);
  const bool chunk = !device().is_cpu() && T > 1 && T < n_keys;
  if (!real_BS.defined() && !window_bites && !chunk) return out;
  const auto real =
      real_BS.defined() ? real_BS : at::ones({1, n_keys}, at::device(device()).dtype(torch::kBool));
  out.mask.additive = ops::additive_mask(real, T, dtype(), window);
  return out;
}

std::pair<torch::Tensor, torch::Tensor> Model::rotary_angles(const torch::Tensor& positions_BT,
                                                             bool local) const {
  const bool own = local && weights_.rotary_frequencies_local.defined();
  const auto& frequencies = own ? weights_.rotary_frequencies_local : weights_.rotary_frequencies;
  if (!frequencies.defined()) return {};
  const auto type = cfg_.rotary_in_float32 && dtype() != torch::kFloat64 ? torch::kFloat32 : dtype();
  return ops::rotary_angles(positions_BT, frequencies, type,
                            own ? 1.0 : cfg_.rotary_scaling.attention_factor);
}

torch::Tensor Model::embed(const torch::Tensor& tokens_BT, const torch::Tensor& positions_BT,
                           const nn::Context& ctx) const {
  const InStage stage(Stage::kEmbedding);
  auto x_BTD = weights_.W_E.gather(tokens_BT);
  stage.count([&] { return StageWork{0, 2.0 * static_cast<double>(x_BTD.nbytes())}; });
  // The factor is rounded to the model's dtype first, as the checkpoints were trained.
  if (cfg_.embed_scale != 1) x_BTD = x_BTD * at::full({}, cfg_.embed_scale, x_BTD.options());
  x_BTD = ctx.hook(hooks::Point::kEmbed, x_BTD);
  if (!weights_.W_pos.defined()) return x_BTD;
  const auto pos_BTD = at::embedding(weights_.W_pos, positions_BT).expand_as(x_BTD);
  return x_BTD + ctx.hook(hooks::Point::kPosEmbed, pos_BTD);
}

torch::Tensor Model::forward(const torch::Tensor& input, const ForwardOptions& options) const {
  std::optional<SoleUser::Use> cache_use;
  if (options.cache) cache_use.emplace(options.cache->enter("Model::forward: the KVCache"));
  check_input(input, options);
  const auto x = on_device(input, device());
  const int64_t T = x.size(1);
  nn::Context ctx;
  ctx.hooks = options.hooks && !options.hooks->empty() ? options.hooks : nullptr;
  hooks::Stash stash;
  ctx.stash = &stash;
  ctx.cache = options.cache;
  ctx.offset = options.cache ? options.cache->length() : 0;
  hooks::Text text;
  torch::Tensor positions_BT;
  if (options.parents.defined()) {
    const auto tree = token_tree(options.parents, ctx.offset, cfg_.n_ctx);
    const auto depths_T = on_device(tree.depths_T, device());
    positions_BT = depths_T.unsqueeze(0);
    ctx.global = positions_in_tree(depths_T, tree.parents_S, /*local=*/false);
    if (!cfg_.attn_types.empty()) ctx.local = positions_in_tree(depths_T, tree.parents_S, /*local=*/true);
  } else {
    // Worked out where the text is given, which hooks read on the host, unless the cache has a part of it.
    const bool in_cache = options.cache && options.cache->mask().defined();
    const auto known_BS = real_keys(options, in_cache ? x : input, ctx.offset);
    const auto real_BS = known_BS.defined() ? on_device(known_BS, device()) : known_BS;
    positions_BT = token_positions(real_BS, ctx.offset, T, device());
    ctx.global = positions(positions_BT, real_BS, ctx.offset + T, /*local=*/false);
    if (!cfg_.attn_types.empty())
      ctx.local = positions(positions_BT, real_BS, ctx.offset + T, /*local=*/true);
    if (ctx.hooks && ctx.hooks->reads_text()) text = known_text(options, input, known_BS, ctx.offset);
  }
  ctx.text = &text;
  std::vector<SoleUser::Use> caches;
  if (ctx.hooks) caches = ctx.hooks->enter_pass(x.size(0), ctx.offset, ctx.text);

  AppendGuard appended(options.cache);
  auto x_BTD = options.start_at_layer ? x : embed(x, positions_BT, ctx);
  const int64_t last_layer = options.stop_at_layer.value_or(cfg_.n_layers);
  for (ctx.layer = options.start_at_layer.value_or(0); ctx.layer < last_layer; ++ctx.layer) {
    if (const auto here = device(ctx.layer); here != x_BTD.device()) {
      x_BTD = x_BTD.to(here);
      ctx.global = ctx.global.to(here);
      ctx.local = ctx.local.to(here);
    }
    x_BTD = block(ctx.layer)->forward(x_BTD, ctx);
  }
  x_BTD = x_BTD.to(device());
  appended.commit(T, options.attention_mask);
  ctx.layer = -1;
  return options.stop_at_layer ? x_BTD : logits(x_BTD, options, ctx);
}

torch::Tensor Model::logits(const torch::Tensor& resid_BTD, const ForwardOptions& options,
                            const nn::Context& ctx) const {
  using hooks::Point;
  const auto any = [&](const auto& asked) {
    return asked(Point::kLnFinalScale) || asked(Point::kLnFinalNormalized) || asked(Point::kUnembedIn) ||
           asked(Point::kUnembedOut);
  };
  const bool read = any([&](Point point) { return ctx.wants(point); });
  const bool changed = any([&](Point point) { return ctx.changes(point); });
  const auto at_columns = [&](const torch::Tensor& x_BTn) -> torch::Tensor {
    switch (options.logits_at) {
      case LogitsAt::kNone:
        return {};
      case LogitsAt::kAll:
        return x_BTn;
      case LogitsAt::kPositions:
        return x_BTn.index_select(1, on_device(options.positions, device()));
      case LogitsAt::kLast: {
        if (!options.attention_mask.defined()) return x_BTn.slice(1, -1);
        const auto column_B = last_real_column(on_device(options.attention_mask, device()).to(torch::kBool));
        return x_BTn.gather(1, column_B.view({-1, 1, 1}).expand({-1, 1, x_BTn.size(2)}));
      }
    }
    throw Error("Model::logits: unknown LogitsAt");
  };
  // What is only read there is computed for its readers, and leaves a readout as it is.
  torch::Tensor logits_BTV;
  if (options.logits_at == LogitsAt::kAll || read)
    logits_BTV = hooked_logits(resid_BTD, options.vocab_ids, ctx);
  if (options.logits_at == LogitsAt::kNone) return {};
  if (options.logits_at == LogitsAt::kAll || changed) return at_columns(logits_BTV);
  return readout(at_columns(resid_BTD), options.vocab_ids);
}

torch::Tensor Model::hooked_logits(const torch::Tensor& resid_BTD, const torch::Tensor& vocab_ids,
                                   const nn::Context& ctx) const {
  using hooks::Point;
  const InStage stage(Stage::kUnembedding);
  const auto x_BTD = ctx.hook(Point::kUnembedIn, weights_.ln_final.forward(resid_BTD, ctx));
  const bool select_first = vocab_ids.defined() && !ctx.wants(Point::kUnembedOut);
  const auto unembed = unembedding(select_first ? vocab_ids : torch::Tensor{}, dtype());
  auto logits_BTV = ctx.hook(Point::kUnembedOut, unembed.forward(x_BTD));
  if (vocab_ids.defined() && !select_first)
    logits_BTV = logits_BTV.index_select(2, on_device(vocab_ids, device()));
  if (dtype() != torch::kFloat64) logits_BTV = logits_BTV.to(torch::kFloat32);
  return soft_capped(logits_BTV, cfg_.output_logits_soft_cap);
}

nn::Linear Model::unembedding(const torch::Tensor& vocab_ids, torch::ScalarType type) const {
  const auto& b_U = weights_.b_U;
  if (!vocab_ids.defined()) return b_U.defined() ? weights_.W_U.with_bias(b_U) : weights_.W_U;
  const auto ids = on_device(vocab_ids, device());
  return nn::Linear(weights_.W_U.gather(ids, type), b_U.defined() ? b_U.index_select(0, ids) : b_U);
}

torch::Tensor Model::readout(const torch::Tensor& resid, const torch::Tensor& vocab_ids) const {
  const InStage stage(Stage::kReadout);
  check_dense<ShapeError>(resid, "Model::readout: the residuals");
  check<ShapeError>(resid.is_floating_point() && resid.dim() > 0 && resid.size(-1) == cfg_.d_model,
                    "Model::readout: residuals must be of a floating dtype and [..., ", cfg_.d_model,
                    "], got ", resid.scalar_type(), " ", resid.sizes());
  if (vocab_ids.defined()) {
    check_dense<ShapeError>(vocab_ids, "Model::readout: vocab_ids");
    check<ShapeError>(vocab_ids.dim() == 1 && at::isIntegralType(vocab_ids.scalar_type(), false),
                      "Model::readout: vocab_ids must be int64 [n], got ", vocab_ids.scalar_type(), " ",
                      vocab_ids.sizes());
  }
  if (vocab_ids.defined() && vocab_ids.numel() > 0)
    check<std::out_of_range>(
        vocab_ids.min().item<int64_t>() >= 0 && vocab_ids.max().item<int64_t>() < cfg_.d_vocab,
        "Model::readout: vocabulary ids must be 0 to ", cfg_.d_vocab - 1, ", got ",
        vocab_ids.min().item<int64_t>(), " to ", vocab_ids.max().item<int64_t>());
  const auto wide = dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto unembed = unembedding(vocab_ids, wide);
  auto ln_final = weights_.ln_final;
  if (ln_final.kind != nn::NormKind::kGemmaRms) ln_final.weight = ln_final.weight.to(wide);
  if (ln_final.bias.defined()) ln_final.bias = ln_final.bias.to(wide);
  const auto x_ND = ln_final.apply(resid.reshape({-1, cfg_.d_model}).to(device(), wide));
  const auto logits_NV = wide == torch::kFloat64 ? unembed.forward(x_ND) : unembed.forward_fp32(x_ND);
  auto sizes = resid.sizes().vec();
  sizes.back() = unembed.n_out();
  return soft_capped(logits_NV, cfg_.output_logits_soft_cap).view(sizes);
}

}  // namespace introspect::models

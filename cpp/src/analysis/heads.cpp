#include "introspect/analysis/heads.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "analysis/frozen_norm.h"
#include "introspect/core/check.h"

namespace introspect::analysis {

namespace {

using hooks::Point;
using hooks::Site;
using models::Model;

constexpr int64_t kEntries = int64_t{1} << 26;  // of one block's attention at a time

torch::Tensor as_float64(const torch::Tensor& x) {
  return x.to(torch::kCPU, torch::kFloat64);
}

void check_pattern(const char* who, const torch::Tensor& D, int64_t T) {
  check<ShapeError>(D.dim() == 2 && D.size(0) == T && D.size(1) == T, who, ": a pattern must be [", T, ", ",
                    T, "] as the text has ", T, " tokens, got ", D.sizes());
  check<std::invalid_argument>(D.equal(D.tril()), who,
                               ": a pattern must be zero above the diagonal, as attention is");
}

/// Earlier positions with the same token: bool [B, T, T].
torch::Tensor duplicates(const torch::Tensor& tokens_BT) {
  return tokens_BT.unsqueeze(2).eq(tokens_BT.unsqueeze(1)).tril(-1);
}

/// The positions after those, short of the current one: bool [B, T, T].
torch::Tensor after_duplicates(const torch::Tensor& duplicates_BTT) {
  return at::constant_pad_nd(duplicates_BTT, {1, -1}).tril(-1);
}

/// Attention that is summed over some keys of every query: the weight of each key, and how many queries count.
struct Wanted {
  std::vector<torch::Tensor> weights_BTT;
  std::vector<int64_t> n_positions;

  void add(const torch::Tensor& weight_BTT, const torch::ScalarType dtype) {
    weights_BTT.push_back(weight_BTT.to(dtype).flatten(1));
    n_positions.push_back(weight_BTT.ne(0).any(2).sum().item<int64_t>());
  }
  torch::Tensor stacked() const { return at::stack(weights_BTT, 1); }  // [B, n, T * T]
};

/// What heads add to the logits of tokens that have been seen before, at the positions where that token is next.
class InductionLogit {
 public:
  InductionLogit(const Model& model, const torch::Tensor& tokens_BT, const torch::Tensor& targets_BTT,
                 const torch::Tensor& mean_W_U)
      : model_(model), places_N_(targets_BTT.any(2).flatten().nonzero().squeeze(1)) {
    const int64_t T = tokens_BT.size(1);
    const auto last_BT = (targets_BTT * at::arange(1, T + 1, tokens_BT.options())).argmax(2);
    const auto next_N = tokens_BT.gather(1, last_BT).flatten().index_select(0, places_N_).to(model.device());
    places_N_ = places_N_.to(model.device());
    const auto& weights = model.weights();
    const auto& unembed = weights.W_U;
    direction_DN_ =
        undivided_transpose(weights.ln_final, (unembed.gather(next_N, unembed.wide_dtype()) - mean_W_U).t());
    per_layer_NH_.resize(static_cast<size_t>(model.cfg().n_layers));
  }

  int64_t n_positions() const { return places_N_.size(0); }

  /// From attn.hook_z [B, T, H, K].
  void add_heads(int64_t layer, const torch::Tensor& z_BTHK) {
    const auto block = model_.block(layer);
    const auto& parts = block->parts();
    const int64_t H = z_BTHK.size(2);
    const auto direction =
        parts.ln1_post ? undivided_transpose(*parts.ln1_post, direction_DN_) : direction_DN_;
    const auto through_W_O = at::matmul(direction.t(), wide(parts.attn.weights().O.dense()));  // [N, H * K]
    const auto z_NHK = wide(z_BTHK.flatten(0, 1).index_select(0, places_N_));
    per_layer_NH_[static_cast<size_t>(layer)] = (through_W_O.view({-1, H, z_NHK.size(2)}) * z_NHK).sum({2});
  }
  /// From the scale [B, T, 1] of a norm after attention.
  void divide(int64_t layer, const torch::Tensor& scale_BT1) {
    per_layer_NH_[static_cast<size_t>(layer)] /= rows(scale_BT1);
  }
  void finish(const torch::Tensor& resid_BTD) {
    final_scale_N1_ = wide_scale(model_.weights().ln_final, rows(resid_BTD));
  }
  torch::Tensor sum_LH() const { return at::stack(per_layer_NH_).div(final_scale_N1_).sum({1}); }

 private:
  torch::Tensor rows(const torch::Tensor& x_BTn) const {
    return wide(x_BTn.flatten(0, 1).index_select(0, places_N_));
  }

  const Model& model_;
  torch::Tensor places_N_, direction_DN_, final_scale_N1_;
  std::vector<torch::Tensor> per_layer_NH_;
};

/// Sums over positions, and how many there were.
struct Sums {
  torch::Tensor values;  // float64 [names, L, H]
  std::vector<int64_t> n_positions;
};

const std::vector<std::string> kNames = {"previous_token", "first_token",     "diagonal", "duplicate_token",
                                         "induction",      "induction_logit", "entropy"};
constexpr int64_t kPrevious = 0, kFirst = 1, kDiagonal = 2, kDuplicate = 3, kInductionLogit = 5, kEntropy = 6;

/// The entropy of attention [B, H, T, T] from the second query on, over what it could be at most: sums [H].
torch::Tensor entropy_sum(const torch::Tensor& A_BHTT, std::optional<int64_t> window) {
  const int64_t T = A_BHTT.size(2);
  auto n_keys = at::arange(2, T + 1, A_BHTT.options());
  if (window) n_keys = n_keys.clamp_max(*window);
  const auto entropy = at::xlogy(A_BHTT, A_BHTT).sum({3}).neg().narrow(2, 1, T - 1);
  return (entropy / n_keys.log()).nan_to_num(0.0).sum(at::IntArrayRef{0, 2});  // 0 / 0: a window of one key
}

Sums sums_of(const Model& model, const torch::Tensor& tokens_BT, const HeadScoreOptions& options,
             const torch::Tensor& mean_W_U) {
  const int64_t B = tokens_BT.size(0), T = tokens_BT.size(1), L = model.cfg().n_layers,
                H = model.cfg().n_heads;
  const auto dtype = model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto same = duplicates(tokens_BT), after = after_duplicates(same);
  Wanted wanted;
  wanted.add(same, dtype);
  wanted.add(after, dtype);
  for (const auto& [name, D] : options.patterns)
    wanted.add(D.to(tokens_BT.device(), dtype).expand({B, T, T}), dtype);
  const auto weights_BnTT = wanted.stacked().to(model.device());

  const auto n_own = static_cast<int64_t>(kNames.size());
  Sums out;
  out.values = at::zeros({n_own + static_cast<int64_t>(options.patterns.size()), L, H}, torch::kFloat64);
  InductionLogit logit(model, tokens_BT, after, mean_W_U);
  out.n_positions.assign(static_cast<size_t>(out.values.size(0)), B * (T - 1));
  out.n_positions[kDuplicate] = wanted.n_positions[0];
  out.n_positions[kDuplicate + 1] = out.n_positions[kInductionLogit] = wanted.n_positions[1];
  std::copy(wanted.n_positions.begin() + 2, wanted.n_positions.end(), out.n_positions.begin() + n_own);

  auto hooks = model.make_hooks();
  for (int64_t layer = 0; layer < L; ++layer) {
    hooks.observe(hooks::hook_name({Point::kPattern, layer}), [&](const torch::Tensor& x, Site site) {
      const auto A = wide(x);  // [B, H, T, T]
      const auto put = [&](int64_t name, const torch::Tensor& sum_H) {
        out.values[name][site.layer].copy_(sum_H);
      };
      put(kPrevious, A.diagonal(-1, 2, 3).sum(at::IntArrayRef{0, 2}));
      put(kFirst, A.select(3, 0).narrow(2, 1, T - 1).sum(at::IntArrayRef{0, 2}));
      put(kDiagonal, A.diagonal(0, 2, 3).narrow(2, 1, T - 1).sum(at::IntArrayRef{0, 2}));
      const auto window =
          model.cfg().is_local(site.layer) ? std::optional(model.cfg().window_size) : std::nullopt;
      put(kEntropy, entropy_sum(A, window));
      const auto sums_nH = at::bmm(weights_BnTT.to(A.device()), A.flatten(2).transpose(1, 2)).sum({0});
      put(kDuplicate, sums_nH[0]);
      put(kDuplicate + 1, sums_nH[1]);
      for (int64_t i = 2; i < sums_nH.size(0); ++i) put(n_own + i - 2, sums_nH[i]);
    });
    if (logit.n_positions() == 0) continue;
    hooks.observe(hooks::hook_name({Point::kZ, layer}),
                  [&](const torch::Tensor& z, Site site) { logit.add_heads(site.layer, z); });
    if (hooks.points().has({Point::kLn1PostScale, layer}))
      hooks.observe(hooks::hook_name({Point::kLn1PostScale, layer}),
                    [&](const torch::Tensor& scale, Site site) { logit.divide(site.layer, scale); });
  }
  if (logit.n_positions() > 0)
    hooks.observe(hooks::hook_name({Point::kResidPost, L - 1}),
                  [&](const torch::Tensor& x, Site) { logit.finish(x); });
  models::ForwardOptions pass;
  pass.hooks = &hooks;
  pass.logits_at = models::LogitsAt::kNone;
  model.forward(tokens_BT, pass);
  if (logit.n_positions() > 0) out.values[kInductionLogit].copy_(logit.sum_LH());
  return out;
}

void check_texts(const Model& model, const std::vector<torch::Tensor>& texts,
                 const HeadScoreOptions& options) {
  const int64_t n_ctx = model.cfg().n_ctx, V = model.cfg().d_vocab;
  check<std::invalid_argument>(!texts.empty(), "head_scores: a text is required, got none");
  for (const auto& tokens : texts) {
    check<ShapeError>(tokens.dim() == 2 && tokens.scalar_type() == torch::kLong && tokens.size(0) > 0 &&
                          tokens.size(1) > 1 && tokens.size(1) <= n_ctx,
                      "head_scores: texts must be int64 [batch, pos] of 2 to ", n_ctx, " tokens, got ",
                      tokens.scalar_type(), " ", tokens.sizes());
    check<std::out_of_range>(tokens.min().item<int64_t>() >= 0 && tokens.max().item<int64_t>() < V,
                             "head_scores: tokens must be 0 to ", V - 1);
    for (const auto& [name, D] : options.patterns)
      check_pattern(("head_scores: '" + name + "'").c_str(), D, tokens.size(1));
  }
}

}  // namespace

torch::Tensor match_pattern(const torch::Tensor& attention, const torch::Tensor& detection,
                            const MatchOptions& options) {
  check<ShapeError>(attention.dim() >= 2 && attention.size(-1) == attention.size(-2),
                    "match_pattern: attention must be [..., T, T], got ", attention.sizes());
  const int64_t T = attention.size(-1);
  check_pattern("match_pattern", detection, T);
  const auto A = wide(attention);
  const auto D = detection.to(A.options());
  auto counts = at::ones({T, T}, A.options());
  if (options.exclude_bos) counts.select(1, 0).zero_();
  if (options.exclude_current_token) counts.fill_diagonal_(0);
  if (options.absolute) {
    const auto away = as_float64(((A - D).abs() * counts).sum({-2, -1})) / static_cast<double>(T);
    return 1 - away.round(3);
  }
  const auto counted = A * counts;
  return as_float64((counted * D).sum({-2, -1})) / as_float64(counted.sum({-2, -1}));
}

torch::Tensor match_heads(const Model& model, const torch::Tensor& tokens, const torch::Tensor& detection,
                          const MatchOptions& options, int64_t n_layers) {
  const at::NoGradGuard no_grad;
  check<ShapeError>(tokens.dim() == 1, "match_heads: tokens must be int64 [pos], got ", tokens.sizes());
  check_pattern("match_heads", detection, tokens.size(0));
  check<std::out_of_range>(n_layers >= 0 && n_layers <= model.cfg().n_layers,
                           "match_heads: n_layers must be 0 to ", model.cfg().n_layers, ", got ", n_layers);
  auto out = at::zeros({n_layers, model.cfg().n_heads}, torch::kFloat64);
  auto hooks = model.make_hooks();
  for (int64_t layer = 0; layer < n_layers; ++layer)
    hooks.observe(hooks::hook_name({Point::kPattern, layer}), [&](const torch::Tensor& A_1HTT, Site site) {
      out[site.layer].copy_(match_pattern(A_1HTT, detection, options).squeeze(0));
    });
  models::ForwardOptions pass;
  pass.hooks = &hooks;
  pass.stop_at_layer = n_layers;
  model.forward(tokens.unsqueeze(0), pass);
  return out;
}

HeadScores head_scores(const Model& model, const std::vector<torch::Tensor>& texts,
                       const HeadScoreOptions& options) {
  const at::NoGradGuard no_grad;
  check_texts(model, texts, options);
  HeadScores out;
  out.names = kNames;
  for (const auto& [name, D] : options.patterns) out.names.push_back(name);
  out.n_positions.assign(out.names.size(), 0);
  auto sums = at::zeros({static_cast<int64_t>(out.names.size()), model.cfg().n_layers, model.cfg().n_heads},
                        torch::kFloat64);
  const auto& W_U = model.weights().W_U;
  const auto mean_W_U = W_U.dense().mean({0}, false, W_U.wide_dtype());
  int64_t n_texts = 0, done = 0;
  for (const auto& tokens_BT : texts) n_texts += tokens_BT.size(0);
  for (const auto& tokens_BT : texts) {
    const int64_t T = tokens_BT.size(1);
    const int64_t step = std::max<int64_t>(1, kEntries / (model.cfg().n_heads * T * T));
    for (const auto& rows : tokens_BT.split(step)) {
      report(options.progress, "texts", done, n_texts);
      const auto some = sums_of(model, rows, options, mean_W_U);
      sums += some.values;
      for (size_t i = 0; i < out.n_positions.size(); ++i) out.n_positions[i] += some.n_positions[i];
      done += rows.size(0);
    }
  }
  report(options.progress, "texts", done, n_texts);
  check<Error>(sums.isfinite().all().item<bool>(),
               "head_scores: the model's attention is not finite on these texts");
  auto counts = at::empty({sums.size(0), 1, 1}, torch::kFloat64);
  for (size_t i = 0; i < out.n_positions.size(); ++i)
    counts[static_cast<int64_t>(i)].fill_(static_cast<double>(out.n_positions[i]));
  out.values = sums / counts;  // 0 / 0 where nothing counts: NaN
  return out;
}

}  // namespace introspect::analysis

#include "introspect/sae/evaluation.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "core/on_device.h"
#include "sae/context_pass.h"

namespace introspect::sae {
namespace {

constexpr int64_t kLogitRows = 256;  // of the vocabulary's width at a time

double total(const torch::Tensor& x) {
  return x.sum().item<double>();
}

torch::Tensor zeros(int64_t n) {
  return at::zeros({n}, torch::kFloat64);
}

torch::Tensor wide(const torch::Tensor& x) {
  return x.detach().to(torch::kCPU, torch::kFloat64);
}

/// Losses and divergences summed over tokens.
struct Losses {
  double ce = 0, kl = 0;
};

/// Sums over the tokens of one batch for residuals after the last block.
class TokenLosses {
 public:
  TokenLosses(const models::Model& model, const ContextBatch& batch) : model_(model) {
    const int64_t T = batch.tokens_BT.size(1);
    at_ = batch.read_BT.flatten().nonzero().squeeze(1);
    const auto last_BT = at::zeros_like(batch.real_BT);
    const auto followed_BT =
        T > 1 ? at::cat({batch.real_BT.narrow(1, 1, T - 1), last_BT.narrow(1, 0, 1)}, 1) : last_BT;
    followed_ = followed_BT.flatten().index_select(0, at_);
    next_ = batch.tokens_BT.roll(-1, 1).flatten().index_select(0, at_);
  }

  int64_t tokens() const { return at_.size(0); }
  int64_t followed() const { return followed_.sum().item<int64_t>(); }

  /// Of each residual [B, T, D]: the first is the model's own.
  std::vector<Losses> of(const std::vector<torch::Tensor>& residuals) const {
    std::vector<Losses> out(residuals.size());
    for (int64_t first = 0; first < tokens(); first += kLogitRows) {
      const int64_t n = std::min(kLogitRows, tokens() - first);
      const auto at = at_.narrow(0, first, n);
      const auto next = next_.narrow(0, first, n).unsqueeze(1);
      const auto followed = followed_.narrow(0, first, n);
      torch::Tensor own, p;
      for (size_t i = 0; i < residuals.size(); ++i) {
        const auto resid = residuals[i].flatten(0, 1);
        const auto logits = model_.readout(resid.index_select(0, at.to(resid.device())));
        const auto log_p = at::log_softmax(logits, -1).to(torch::kCPU);
        out[i].ce -= total(log_p.gather(1, next).squeeze(1).masked_select(followed).to(torch::kFloat64));
        if (i == 0) {
          own = log_p;
          p = log_p.exp();
        } else {
          // 0 (log 0 - ..) is 0
          const auto kl = (p * (own - log_p)).masked_fill(p == 0, 0);
          out[i].kl += total(kl.sum(-1).to(torch::kFloat64));
        }
      }
    }
    return out;
  }

 private:
  const models::Model& model_;
  torch::Tensor at_, next_, followed_;  // of the read tokens
};

}  // namespace

ReconstructionStatistics::ReconstructionStatistics(int64_t d_sae, int64_t d_out)
    : sum_D_(zeros(d_out)),
      error_sum_D_(zeros(d_out)),
      count_F_(at::zeros({d_sae}, torch::kInt64)),
      sum_F_(zeros(d_sae)),
      max_F_(zeros(d_sae)) {}

void ReconstructionStatistics::add(const Dictionary& dictionary, const torch::Tensor& x_ND,
                                   const torch::Tensor& y_ND) {
  const at::NoGradGuard no_grad;
  check<ShapeError>(y_ND.defined() || dictionary.d_in() == dictionary.d_out(),
                    "ReconstructionStatistics: a dictionary from ", dictionary.d_in(), " to ",
                    dictionary.d_out(), " dimensions needs what it should give");
  const auto f = dictionary.encode_sparse(x_ND);
  add(f, y_ND.defined() ? y_ND : x_ND, dictionary.decode(f, x_ND));
}

void ReconstructionStatistics::add(const SparseFeatures& f, const torch::Tensor& y_ND,
                                   const torch::Tensor& y_hat_ND) {
  const int64_t N = f.rows(), D = sum_D_.size(0), F = count_F_.size(0);
  check<ShapeError>(f.d_sae == F && y_ND.dim() == 2 && y_ND.size(0) == N && y_ND.size(1) == D &&
                        y_hat_ND.sizes() == y_ND.sizes(),
                    "ReconstructionStatistics: rows must be [", N, ", ", D, "] and features ", F,
                    " wide, got ", y_ND.sizes(), ", ", y_hat_ND.sizes(), " and ", f.d_sae);
  if (N == 0) return;
  const auto y = wide(y_ND), y_hat = wide(y_hat_ND), r = y - y_hat;
  check<std::invalid_argument>(at::isfinite(y).all().item<bool>(),
                               "ReconstructionStatistics: activations must be finite");
  const auto rr_N = r.pow(2).sum(1), n_in_N = y.norm(2, 1), n_out_N = y_hat.norm(2, 1),
             dot_N = (y * y_hat).sum(1);
  rows_ += N;
  ++batches_;
  error_ += total(rr_N);
  squared_in_ += total(n_in_N.pow(2));
  squared_out_ += total(n_out_N.pow(2));
  product_ += total(dot_N);
  legacy_ += total(1 - rr_N / (y - y.mean(0)).pow(2).sum(1));
  cosine_ += total(dot_N / (n_in_N * n_out_N).clamp_min(1e-30));
  in_ += total(n_in_N);
  out_ += total(n_out_N);
  ratio_ += total(n_out_N / n_in_N.masked_fill(n_in_N < 1e-4, 1));  // SAELens's guard
  sum_D_ += y.sum(0);
  error_sum_D_ += r.sum(0);
  active_ += f.indices.size(0);
  const auto values = wide(f.values), size = values.abs();
  const auto ids = f.indices.to(torch::kCPU);
  l1_ += total(size);
  count_F_ += at::bincount(ids, {}, F);
  sum_F_.index_add_(0, ids, values);
  max_F_.scatter_reduce_(0, ids, size, "amax");
}

ReconstructionFigures ReconstructionStatistics::figures() const {
  check<std::invalid_argument>(rows_ > 0, "ReconstructionStatistics: at least one row is needed, got none");
  const auto n = static_cast<double>(rows_);
  const double variance = squared_in_ / n - total((sum_D_ / n).pow(2));
  const double error_variance = error_ / n - total((error_sum_D_ / n).pow(2));
  const bool varies = variance > 1e-12 * squared_in_ / n;
  const auto share = [&](double of) {
    return varies ? 1 - of / variance : std::numeric_limits<double>::quiet_NaN();
  };
  ReconstructionFigures out;
  out.rows = rows_;
  out.mse = error_ / n;
  out.explained_variance = share(out.mse);
  out.explained_variance_legacy = legacy_ / n;
  out.fraction_of_variance_explained = share(error_variance);
  out.cosine = cosine_ / n;
  out.l2_norm_in = in_ / n;
  out.l2_norm_out = out_ / n;
  out.l2_ratio = ratio_ / n;
  out.relative_reconstruction_bias = squared_out_ / product_;
  out.l0 = static_cast<double>(active_) / n;
  out.l1 = l1_ / n;
  out.dead_share = total((count_F_ == 0).to(torch::kFloat64)) / static_cast<double>(count_F_.size(0));
  out.density_F = count_F_.to(torch::kFloat64) / n;
  out.mean_active_F = sum_F_ / count_F_.clamp_min(1);
  out.max_active_F = max_F_.clone();
  return out;
}

DictionaryEvaluation evaluate(const models::Model& model, const Dictionary& dictionary,
                              const Contexts& contexts, const EvaluationOptions& options) {
  constexpr auto who = "evaluate";
  const at::NoGradGuard no_grad;
  const auto inputs = Sites::inputs(who, model, dictionary), outputs = Sites::outputs(who, model, dictionary);
  const auto all =
      batches(who, model.cfg(), without_masked(model, dictionary, contexts), options.batch_tokens);
  const int64_t L = model.cfg().n_layers, start = outputs.first_layer();
  const auto before = hooks::hook_name({hooks::Point::kResidPre, std::max<int64_t>(start, 0)});

  ReconstructionStatistics statistics(dictionary.d_sae(), dictionary.d_out());
  Losses own, spliced, zero;
  int64_t tokens = 0, followed = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& batch = all[i];
    report(options.progress, "evaluating", static_cast<int64_t>(i), static_cast<int64_t>(all.size()));
    const auto cache = std::make_shared<hooks::ActivationCache>();
    auto reading = model.make_hooks();
    inputs.record(reading, cache);
    outputs.record(reading, cache);
    if (options.spliced && start >= 0) reading.record(before, cache);
    models::ForwardOptions pass;
    pass.hooks = &reading;
    pass.stop_at_layer = options.spliced ? L : std::max(inputs.last_layer(), outputs.last_layer()) + 1;
    const auto tokens_BT = on_device(batch.tokens_BT, model.device());
    const auto resid_BTD = model.forward(tokens_BT, pass);

    const auto y_BTD = outputs.joined(*cache);
    const auto read = on_device(batch.read_BT, y_BTD.device());
    const auto x_ND = inputs.joined(*cache).index({read}), y_ND = y_BTD.index({read});
    const auto f = dictionary.encode_sparse(x_ND);
    const auto y_hat_ND = dictionary.decode(f, x_ND);
    statistics.add(f, y_ND, y_hat_ND);
    if (!options.spliced) continue;

    const auto changed = [&](const torch::Tensor& to_BTD) {
      auto changing = model.make_hooks();
      outputs.replace(changing, to_BTD);
      models::ForwardOptions from;
      from.hooks = &changing;
      from.stop_at_layer = L;
      if (start < 0) return model.forward(tokens_BT, from);
      from.start_at_layer = start;
      return model.forward(cache->at(before), from);
    };
    const auto replaced = changed(y_BTD.index_put({read}, y_hat_ND.to(y_BTD.options())));
    const auto ablated = changed(at::zeros_like(y_BTD));
    const TokenLosses losses(model, batch);
    const auto of = losses.of({resid_BTD, replaced, ablated});
    own.ce += of[0].ce;
    spliced.ce += of[1].ce;
    spliced.kl += of[1].kl;
    zero.ce += of[2].ce;
    zero.kl += of[2].kl;
    tokens += losses.tokens();
    followed += losses.followed();
  }
  const auto n = static_cast<int64_t>(all.size());
  report(options.progress, "evaluating", n, n);
  DictionaryEvaluation out{statistics.figures(), {}};
  if (!options.spliced) return out;
  const auto pairs = static_cast<double>(followed), reads = static_cast<double>(tokens);
  out.splice = SpliceFigures{tokens,          own.ce / pairs,     spliced.ce / pairs,
                             zero.ce / pairs, spliced.kl / reads, zero.kl / reads};
  return out;
}

}  // namespace introspect::sae

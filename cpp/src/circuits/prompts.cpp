#include "circuits/prompts.h"

#include <algorithm>
#include <map>

#include <torch/autograd.h>

#include "circuits/norms.h"
#include "introspect/core/check.h"

#include "core/excerpt.h"
#include "core/on_device.h"

namespace introspect::circuits {

namespace {

std::string token_text(const models::Model& model, const torch::Tensor& tokens, int64_t at) {
  if (at >= tokens.size(0)) return "the end";
  const int64_t id = tokens[at].item<int64_t>();
  return model.has_tokenizer() ? excerpt(model.tokenizer().decode({id})) : concat("token ", id);
}

void check_tokens(const char* who, const models::Model& model, const torch::Tensor& tokens, const char* what,
                  size_t which) {
  check<ShapeError>(
      tokens.defined() && tokens.dim() == 1 && tokens.numel() > 0 && tokens.scalar_type() == torch::kLong,
      who, ": ", what, " prompt ", which, " must be int64 [pos] and not empty, got ",
      tokens.defined() ? concat(tokens.scalar_type(), " ", tokens.sizes()) : "nothing");
  check<std::out_of_range>(
      tokens.min().item<int64_t>() >= 0 && tokens.max().item<int64_t>() < model.cfg().d_vocab, who, ": ",
      what, " prompt ", which, ": token ids must be 0 to ", model.cfg().d_vocab - 1);
}

void check_pair(const char* who, const models::Model& model, const torch::Tensor& clean,
                const torch::Tensor& corrupted, size_t which) {
  if (clean.size(0) == corrupted.size(0)) return;
  const int64_t n = std::min(clean.size(0), corrupted.size(0));
  int64_t at = 0;
  while (at < n && clean[at].item<int64_t>() == corrupted[at].item<int64_t>()) ++at;
  throw ShapeError(concat(who, ": prompts of a pair must have equally many tokens; pair ", which, " has ",
                          clean.size(0), " and ", corrupted.size(0), ", and they first differ at position ",
                          at, ": ", token_text(model, clean, at), " against ",
                          token_text(model, corrupted, at)));
}

/// The mean of what every sender writes over prompts, and over positions or at each: [senders, 1, T or 1, D].
torch::Tensor mean_outputs(const models::Model& model, const Nodes& nodes,
                           const std::vector<torch::Tensor>& prompts, bool positional) {
  Prompts of;
  of.clean = prompts;
  torch::Tensor sum;
  int64_t n = 0;
  for (const auto& batch : batches(of, senders_bytes(model, nodes), kBatchBytes)) {
    const auto out = wide(Decoder(model, nodes, batch.n_tokens()).run(batch.clean_BT, false).senders);
    auto part = out.sum(1, /*keepdim=*/true);
    if (!positional) part = part.sum(2, /*keepdim=*/true);
    check<ShapeError>(!sum.defined() || sum.sizes() == part.sizes(),
                      "circuits: means at each position need prompts of one length, got ",
                      sum.defined() ? sum.size(2) : 0, " and ", part.size(2), " tokens");
    sum = sum.defined() ? sum + part : part;
    n += positional ? batch.size() : batch.size() * batch.n_tokens();
  }
  return (sum / static_cast<double>(n)).to(model.dtype());
}

}  // namespace

void check_prompts(const char* who, const models::Model& model, const Prompts& prompts,
                   bool needs_corrupted) {
  const size_t n = prompts.clean.size();
  check<std::invalid_argument>(n > 0, who, ": at least one prompt is needed, got none");
  check<std::invalid_argument>(!needs_corrupted || !prompts.corrupted.empty(), who,
                               ": corrupted prompts are needed, got none");
  check<std::invalid_argument>(prompts.corrupted.empty() || prompts.corrupted.size() == n, who, ": ", n,
                               " clean prompts need as many corrupted ones, got ", prompts.corrupted.size());
  for (size_t i = 0; i < n; ++i) {
    check_tokens(who, model, prompts.clean[i], "clean", i);
    if (prompts.corrupted.empty()) continue;
    check_tokens(who, model, prompts.corrupted[i], "corrupted", i);
    check_pair(who, model, prompts.clean[i], prompts.corrupted[i], i);
  }
  if (prompts.of_logits) return;
  check<std::invalid_argument>(prompts.metrics.size() == 1 || prompts.metrics.size() == n, who,
                               ": one metric is needed, or one for each of the ", n, " prompts, got ",
                               prompts.metrics.size());
  for (size_t i = 0; i < n; ++i)
    analysis::reads_of(prompts.metrics[prompts.metrics.size() == 1 ? 0 : i], prompts.clean[i].size(0),
                       model.cfg().d_vocab);
}

std::vector<Batch> batches(const Prompts& prompts, int64_t bytes_per_token, int64_t most_bytes) {
  std::map<int64_t, std::vector<size_t>> by_length;
  for (size_t i = 0; i < prompts.clean.size(); ++i) by_length[prompts.clean[i].size(0)].push_back(i);
  std::vector<Batch> out;
  for (const auto& [n_tokens, which] : by_length) {
    const auto step = static_cast<size_t>(std::max<int64_t>(1, most_bytes / (bytes_per_token * n_tokens)));
    for (size_t first = 0; first < which.size(); first += step) {
      Batch batch;
      batch.which.assign(which.begin() + static_cast<int64_t>(first),
                         which.begin() + static_cast<int64_t>(std::min(first + step, which.size())));
      std::vector<torch::Tensor> clean, corrupted;
      for (const size_t i : batch.which) {
        clean.push_back(prompts.clean[i]);
        if (!prompts.corrupted.empty()) corrupted.push_back(prompts.corrupted[i]);
      }
      batch.clean_BT = at::stack(clean);
      if (!corrupted.empty()) batch.corrupted_BT = at::stack(corrupted);
      out.push_back(std::move(batch));
    }
  }
  return out;
}

int64_t senders_bytes(const models::Model& model, const Nodes& nodes) {
  return nodes.n_senders() * nodes.d_model * (model.dtype() == torch::kFloat64 ? 8 : 4);
}

int64_t trace_bytes(const models::Model& model, const Nodes& nodes) {
  const auto& cfg = model.cfg();
  const int64_t per_layer =
      2 * cfg.d_model + (nodes.n_readers() - 1) * cfg.d_head +
      (cfg.is_mixture() ? cfg.experts_per_token : 1) * (cfg.gated_mlp ? 2 : 1) * cfg.d_mlp;
  return cfg.n_layers * per_layer * (model.dtype() == torch::kFloat64 ? 8 : 4);
}

Alternatives::Alternatives(const models::Model& model, const Nodes& nodes, const Prompts& prompts,
                           const AblationOptions& options)
    : ablation_(options.ablation) {
  if (ablation_ == Ablation::zero)
    mean_ =
        at::zeros({nodes.n_senders(), 1, 1, nodes.d_model}, at::device(model.device()).dtype(model.dtype()));
  if (ablation_ != Ablation::mean && ablation_ != Ablation::mean_positional) return;
  const auto& own = prompts.corrupted.empty() ? prompts.clean : prompts.corrupted;
  const auto& over = options.mean_over.empty() ? own : options.mean_over;
  for (size_t i = 0; i < over.size(); ++i) check_tokens("circuits", model, over[i], "mean_over", i);
  mean_ = mean_outputs(model, nodes, over, ablation_ == Ablation::mean_positional);
}

torch::Tensor Alternatives::of(const Batch& batch, const std::optional<Decoder::Run>& corrupted) const {
  if (ablation_ == Ablation::patching) return corrupted->senders;
  check<ShapeError>(mean_.size(2) == 1 || mean_.size(2) == batch.n_tokens(),
                    "circuits: means at each position are of ", mean_.size(2), " tokens, and a prompt has ",
                    batch.n_tokens());
  return mean_;
}

Measure::Measure(const Decoder& decoder, const Prompts& prompts, const Batch& batch)
    : decoder_(decoder), of_logits_(prompts.of_logits) {
  if (of_logits_) return;
  for (const size_t i : batch.which) {
    metrics_.push_back(&prompts.metrics[prompts.metrics.size() == 1 ? 0 : i]);
    reads_.push_back(analysis::reads_of(*metrics_.back(), batch.n_tokens(), decoder.model().cfg().d_vocab));
    positions_.push_back(on_device(reads_.back().positions, decoder.model().device()));
  }
  references_.resize(metrics_.size());
}

torch::Tensor Measure::logits(const torch::Tensor& x, const torch::Tensor& vocab_ids) const {
  const auto& model = decoder_.model();
  if (model.dtype() != torch::kFloat64) return model.readout(x, vocab_ids);
  const auto& weights = model.weights();
  const auto ids = vocab_ids.defined() ? on_device(vocab_ids, model.device()) : vocab_ids;
  const auto W_U = ids.defined() ? weights.W_U.gather(ids) : weights.W_U.dense();
  const auto out = at::matmul(normed(weights.ln_final, x), W_U.t());
  const auto& b_U = weights.b_U;
  const auto biased = b_U.defined() ? out + (ids.defined() ? b_U.index_select(0, ids) : b_U) : out;
  const double cap = model.cfg().output_logits_soft_cap;
  return cap > 0 ? (biased / cap).tanh() * cap : biased;
}

void Measure::set_clean(const torch::Tensor& last_BTD) {
  const at::NoGradGuard no_grad;
  for (size_t b = 0; b < metrics_.size(); ++b)
    if (reads_[b].needs_reference)
      references_[b] =
          logits(last_BTD[static_cast<int64_t>(b)].index_select(0, positions_[b]), reads_[b].vocab_ids);
}

torch::Tensor Measure::value_of_rows(size_t b, const torch::Tensor& x_MPD) const {
  return analysis::evaluate(*metrics_[b], reads_[b], logits(x_MPD, reads_[b].vocab_ids), references_[b]);
}

torch::Tensor Measure::value_of_all(const torch::Tensor& last_MBTD) const {
  std::vector<torch::Tensor> out;
  for (const auto& last_TD : last_MBTD.flatten(0, 1).unbind(0)) {
    const auto value = of_logits_(logits(last_TD, {}).unsqueeze(0));
    check<ShapeError>(value.defined() && value.numel() == 1,
                      "circuits: the metric of a prompt's logits must be one number, got ",
                      value.defined() ? concat(value.sizes()) : "nothing");
    out.push_back(value.flatten()[0]);
  }
  return at::stack(out).view({last_MBTD.size(0), last_MBTD.size(1)});
}

torch::Tensor Measure::values(const torch::Tensor& last_MBTD) const {
  const at::NoGradGuard no_grad;
  if (of_logits_) return value_of_all(last_MBTD);
  std::vector<torch::Tensor> out;
  for (size_t b = 0; b < metrics_.size(); ++b)
    out.push_back(
        value_of_rows(b, last_MBTD.select(1, static_cast<int64_t>(b)).index_select(1, positions_[b])));
  return at::stack(out, 1);
}

torch::Tensor Measure::gradient(const torch::Tensor& last_MBTD) const {
  const at::AutoGradMode with_gradients(true);
  const auto gradient_of = [](const torch::Tensor& value, const torch::Tensor& leaf) {
    check<std::invalid_argument>(
        value.requires_grad(),
        "circuits: the metric has no gradient (rank and accuracy have none): use the exact method");
    return torch::autograd::grad({value.sum()}, {leaf})[0];
  };
  if (of_logits_) {
    const auto leaf = last_MBTD.detach().requires_grad_();
    return gradient_of(value_of_all(leaf), leaf);
  }
  auto out = at::zeros(last_MBTD.sizes(), last_MBTD.options().dtype(wide(last_MBTD.scalar_type())));
  for (size_t b = 0; b < metrics_.size(); ++b) {
    const auto at_b = static_cast<int64_t>(b);
    const auto leaf =
        wide(last_MBTD.select(1, at_b).index_select(1, positions_[b])).detach().requires_grad_();
    out.select(1, at_b).index_copy_(1, positions_[b], gradient_of(value_of_rows(b, leaf), leaf));
  }
  return out;
}

}  // namespace introspect::circuits

#include "introspect/circuits/acdc.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "circuits/decoder.h"
#include "circuits/masked_run.h"
#include "circuits/prompts.h"
#include "introspect/core/check.h"

namespace introspect::circuits {

namespace {

constexpr int64_t kTokensPerPass = 2048;

/// One batch of prompts, run once.
struct Prepared {
  Prepared(const models::Model& model, const Nodes& nodes, const Prompts& prompts, const Batch& batch,
           const AcdcOptions& options, const Alternatives& alternatives)
      : decoder(model, nodes, batch.n_tokens()),
        measure(decoder, prompts, batch),
        clean(decoder.run(batch.clean_BT, /*keep_streams=*/true)) {
    measure.set_clean(clean.streams.back());
    std::optional<Decoder::Run> corrupted;
    if (options.ablation == Ablation::patching) corrupted = decoder.run(batch.corrupted_BT, false);
    alternative = alternatives.of(batch, corrupted);
  }

  Decoder decoder;
  Measure measure;  // refers to the decoder: a Prepared stays where it is made
  Decoder::Run clean;
  torch::Tensor alternative;
};

class Search {
 public:
  Search(const models::Model& model, const Prompts& prompts, const AcdcOptions& options, const Circuit& start)
      : options_(options), nodes_(start.nodes), is_whole_(start.in_graph.equal(start.nodes.edges())) {
    const Alternatives alternatives(model, nodes_, prompts, options);
    for (const auto& batch : batches(prompts, 3 * senders_bytes(model, nodes_), kBatchBytes)) {
      prepared_.push_back(std::make_unique<Prepared>(model, nodes_, prompts, batch, options, alternatives));
      n_prompts_ += batch.size();
      n_tokens_ += batch.size() * batch.n_tokens();
    }
    out_.circuit = start;
    out_.circuit.scores = at::zeros_like(start.scores);
    out_.circuit.in_graph = start.in_graph.clone();
    total_ = start.n_edges();
  }

  Acdc run() {
    out_.metric = metrics(out_.circuit.in_graph.unsqueeze(0), nodes_.n_layers, /*from_first=*/!is_whole_)[0];
    check<Error>(std::isfinite(out_.metric), "acdc: the metric of the circuit that is begun with is ",
                 out_.metric, ": activations or the metric of some prompt are not finite");
    for (int64_t receiver = nodes_.logits(); receiver >= 0; --receiver) try_edges_into(receiver);
    report(options_.progress, "edges tried", total_, total_);
    return out_;
  }

 private:
  /// Means over prompts of circuits [C, senders, receivers] that are the clean run below a layer.
  std::vector<double> metrics(const torch::Tensor& in_CUV, int64_t layer, bool from_first) {
    auto sums = at::zeros({in_CUV.size(0)}, torch::kFloat64);
    const int64_t first = from_first ? 0 : layer;
    for (const auto& one : prepared_) {
      const MaskedRun masked(one->decoder, first, one->clean.streams[static_cast<size_t>(first)],
                             one->clean.senders, one->alternative);
      sums += one->measure.values(masked.run(in_CUV)).to(torch::kCPU, torch::kFloat64).sum(1);
    }
    out_.n_runs += in_CUV.size(0);
    sums /= static_cast<double>(n_prompts_);
    return {sums.const_data_ptr<double>(), sums.const_data_ptr<double>() + sums.numel()};
  }

  bool feeds_nothing(int64_t receiver) const {
    const auto fed = nodes_.fed_by(receiver);
    return fed.n > 0 && !out_.circuit.in_graph.narrow(0, fed.first, fed.n).any().item<bool>();
  }

  void try_edges_into(int64_t receiver) {
    auto in = out_.circuit.in_graph.accessor<bool, 2>();
    auto scores = out_.circuit.scores.accessor<double, 2>();
    std::vector<int64_t> senders;
    for (int64_t s = nodes_.n_before(receiver) - 1; s >= 0; --s)
      if (in[s][receiver]) senders.push_back(s);
    if (options_.threshold > 0 && feeds_nothing(receiver)) {
      for (const int64_t s : senders) in[s][receiver] = false;
      done_ += static_cast<int64_t>(senders.size());
      return;
    }
    const auto most = static_cast<size_t>(std::clamp<int64_t>(kTokensPerPass / n_tokens_, 1, 64));
    for (size_t next = 0; next < senders.size();) {
      report(options_.progress, "edges tried", done_, total_);
      const size_t n = std::min({ahead_, most, senders.size() - next});
      auto chain = out_.circuit.in_graph.unsqueeze(0).repeat({static_cast<int64_t>(n), 1, 1});
      for (size_t i = 0; i < n; ++i)  // circuit i is without the first i + 1 of these edges
        chain.slice(0, static_cast<int64_t>(i)).select(1, senders[next + i]).select(1, receiver).fill_(false);
      const auto values = metrics(chain, nodes_.layer_of(receiver), !is_whole_);
      size_t i = 0;
      for (bool goes = true; goes && i < n; ++i) {
        const int64_t s = senders[next + i];
        scores[s][receiver] = values[i] - out_.metric;
        goes = scores[s][receiver] < options_.threshold;
        in[s][receiver] = !goes;
        if (goes) out_.metric = values[i];
        ahead_ = goes ? std::min<size_t>(64, 2 * n) : i + 1;
      }
      next += i;
      done_ += static_cast<int64_t>(i);
    }
  }

  const AcdcOptions& options_;
  Nodes nodes_;
  bool is_whole_;
  std::vector<std::unique_ptr<Prepared>> prepared_;
  int64_t n_prompts_ = 0, n_tokens_ = 0, total_ = 0, done_ = 0;
  size_t ahead_ = 8;  // edges that are tried at once
  Acdc out_;
};

}  // namespace

Acdc acdc(const models::Model& model, const Prompts& prompts, const AcdcOptions& options) {
  const at::NoGradGuard no_grad;
  check_prompts("acdc", model, prompts, options.ablation == Ablation::patching);
  check<std::invalid_argument>(std::isfinite(options.threshold), "acdc: the threshold must be finite, got ",
                               options.threshold);
  if (options.start) options.start->check_fits(model.cfg());
  const auto start =
      options.start ? *options.start : Circuit::whole(Nodes::of(model.cfg(), options.ungrouped));
  return Search(model, prompts, options, start).run();
}

}  // namespace introspect::circuits

#include "introspect/circuits/edge_attribution.h"

#include <cmath>
#include <numbers>
#include <optional>
#include <utility>

#include "circuits/decoder.h"
#include "circuits/exact_edges.h"
#include "circuits/norms.h"
#include "circuits/prompts.h"
#include "introspect/core/check.h"

namespace introspect::circuits {

namespace {

/// Points of the way from the alternative (0) to the clean run (1), and the weight of each in the mean of gradients.
struct Way {
  std::vector<double> at, weights;
  int64_t size() const { return static_cast<int64_t>(at.size()); }
};

/// Gauss and Legendre's points on [0, 1], by Newton's method on the polynomial of degree n.
Way gauss_legendre(int64_t n) {
  Way out;
  for (int64_t i = 0; i < n; ++i) {
    double x = std::cos(std::numbers::pi * (static_cast<double>(i) + 0.75) / (static_cast<double>(n) + 0.5));
    double slope = 1;
    for (int step = 0; step < 100; ++step) {
      double p = 1, before = 0;
      for (int64_t k = 1; k <= n; ++k) {
        const auto degree = static_cast<double>(k);
        before = std::exchange(p, ((2 * degree - 1) * x * p - (degree - 1) * before) / degree);
      }
      slope = static_cast<double>(n) * (x * p - before) / (x * x - 1);
      const double moved = p / slope;
      x -= moved;
      if (std::abs(moved) < 1e-15) break;
    }
    out.at.push_back((1 + x) / 2);
    out.weights.push_back(1 / ((1 - x * x) * slope * slope));
  }
  return out;
}

/// Left Riemann points k / n, from the alternative's end; of activations right ones, to the clean end.
Way riemann(int64_t n, int64_t first) {
  Way out;
  for (int64_t k = first; k < first + n; ++k)
    out.at.push_back(static_cast<double>(k) / static_cast<double>(n));
  out.weights.assign(static_cast<size_t>(n), 1 / static_cast<double>(n));
  return out;
}

Way way_of(const EdgeAttributionOptions& options) {
  switch (options.method) {
    case EdgeMethod::eap:
      return {{1}, {1}};
    case EdgeMethod::clean_corrupted:
      return {{0, 1}, {0.5, 0.5}};
    default:
      if (options.gauss) return gauss_legendre(options.ig_steps);
      return riemann(options.ig_steps, options.method == EdgeMethod::eap_ig ? 0 : 1);
  }
}

/// Sums of scores over prompts, [T or 1, senders, receivers].
class Scores {
 public:
  Scores(const Nodes& nodes, int64_t n_tokens, bool per_position) : per_position_(per_position) {
    sums_ = at::zeros({per_position ? n_tokens : 1, nodes.n_senders(), nodes.n_receivers()}, torch::kFloat64);
  }

  /// Adds change . gradient for senders [first_sender, + change's first dimension) and receivers [first_receiver, + n).
  void add(int64_t first_sender, const torch::Tensor& change_UBTD, int64_t first_receiver,
           const torch::Tensor& g_nBTD) {
    const auto rows = [&](const torch::Tensor& x) {
      return per_position_ ? x.permute({2, 0, 1, 3}).flatten(2) : x.flatten(1).unsqueeze(0);
    };
    const auto products = at::bmm(rows(change_UBTD), rows(g_nBTD).transpose(1, 2));
    sums_.narrow(1, first_sender, change_UBTD.size(0))
        .narrow(2, first_receiver, g_nBTD.size(0))
        .add_(products.to(torch::kCPU, torch::kFloat64));
  }

  torch::Tensor mean(int64_t n_prompts) const { return sums_ / static_cast<double>(n_prompts); }

 private:
  bool per_position_;
  torch::Tensor sums_;
};

/// One batch of prompts, and how its edges are scored.
class Attribution {
 public:
  Attribution(const Decoder& decoder, const Measure& measure, const torch::Tensor& change_UBTD,
              const Way& way, Scores& scores)
      : decoder_(decoder), measure_(measure), change_(change_UBTD), way_(way), scores_(scores) {}

  /// Gradients along the way of the embedding.
  void of_embedding(const torch::Tensor& clean_BTD) {
    const auto start = points(clean_BTD, change_[0], [&](const auto& x) { return decoder_.stream_of(x); });
    score(decoder_.trace(start), 0, decoder_.nodes().n_senders());
  }

  /// Gradients along the way of each component's own output.
  void of_activations(const std::vector<torch::Tensor>& streams, const torch::Tensor& senders) {
    const auto& nodes = decoder_.nodes();
    const auto same = [](const auto& x) { return x; };
    score(decoder_.trace(points(streams[0], change_[0], same)), 0, 1);
    for (int64_t layer = 0; layer < nodes.n_layers; ++layer) {
      const int64_t first = nodes.head(layer, 0), mlp = nodes.mlp(layer);
      const auto after = streams[static_cast<size_t>(layer) + 1];
      const auto mid = points(after - senders[mlp], change_.narrow(0, first, nodes.n_heads).sum(0), same);
      const auto before = streams[static_cast<size_t>(layer)].repeat({way_.size(), 1, 1});
      score(decoder_.trace(mid, layer, /*from_mlp=*/true, before), first, nodes.n_heads);
      score(decoder_.trace(points(after, change_[mlp], same), layer + 1), mlp, 1);
    }
  }

 private:
  /// clean + (1 - at) change for every point of the way, [M * B, T, D].
  template <typename F>
  torch::Tensor points(const torch::Tensor& clean_BTD, const torch::Tensor& change_BTD,
                       const F& finish) const {
    std::vector<torch::Tensor> out;
    for (const double at : way_.at)
      out.push_back(
          finish(at == 1 ? clean_BTD : clean_BTD + ((1 - at) * change_BTD).to(clean_BTD.scalar_type())));
    return at::cat(out);
  }

  /// Scores the edges of senders [first, first + n) by the gradients of a run of every point of the way.
  void score(Decoder::Trace trace, int64_t first, int64_t n) {
    const int64_t M = way_.size();
    const auto last = trace.last_BTD.unflatten(0, {M, -1});
    const auto weights =
        torch::tensor(way_.weights, torch::kFloat64).to(last.device(), wide(last.scalar_type()));
    const auto g = measure_.gradient(last) * weights.view({M, 1, 1, 1});
    decoder_.backward(trace, g.flatten(0, 1), [&](int64_t receiver, const torch::Tensor& g_nBTD) {
      const int64_t fed = std::min(first + n, decoder_.nodes().n_before(receiver)) - first;
      if (fed <= 0) return;
      scores_.add(first, change_.narrow(0, first, fed), receiver, g_nBTD.unflatten(1, {M, -1}).sum(1));
    });
  }

  const Decoder& decoder_;
  const Measure& measure_;
  const torch::Tensor& change_;
  const Way& way_;
  Scores& scores_;
};

void check_options(const Prompts& prompts, const EdgeAttributionOptions& options) {
  check<std::invalid_argument>(options.ig_steps >= 1, "edge_attribution: ig_steps must be at least 1, got ",
                               options.ig_steps);
  check<std::invalid_argument>(
      options.edges.empty() || options.method == EdgeMethod::exact,
      "edge_attribution: edges are chosen for the exact method; the others score all at once");
  if (options.per_position)
    check<std::invalid_argument>(options.method != EdgeMethod::exact,
                                 "edge_attribution: the exact method patches all positions of an edge");
  for (const auto& metric : prompts.metrics)
    if (options.method != EdgeMethod::exact)
      analysis::check_has_gradient("edge_attribution", metric, "the exact method");
  for (const auto& prompt : prompts.clean)
    check<ShapeError>(!options.per_position || prompt.size(0) == prompts.clean[0].size(0),
                      "edge_attribution: scores of each position need prompts of one length, got ",
                      prompts.clean[0].size(0), " and ", prompt.size(0), " tokens");
}

void put(torch::Tensor& into, const Batch& batch, const torch::Tensor& values_B) {
  for (size_t b = 0; b < batch.which.size(); ++b)
    into[static_cast<int64_t>(batch.which[b])] =
        values_B[static_cast<int64_t>(b)].to(torch::kCPU, torch::kFloat64);
}

void check_scores(const torch::Tensor& scores) {
  check<Error>(scores.isfinite().all().item<bool>(),
               "edge_attribution: scores are not finite: activations or the metric of some prompt are not; "
               "models::check_finite names the first block");
}

}  // namespace

EdgeAttribution edge_attribution(const models::Model& model, const Prompts& prompts,
                                 const EdgeAttributionOptions& options) {
  const at::NoGradGuard no_grad;
  check_prompts("edge_attribution", model, prompts, options.ablation == Ablation::patching);
  check_options(prompts, options);
  const auto nodes = Nodes::of(model.cfg(), options.ungrouped);
  const auto n_prompts = static_cast<int64_t>(prompts.clean.size());
  const auto chosen = chosen_edges(nodes, options.edges);
  const Alternatives alternatives(model, nodes, prompts, options);
  const auto way = way_of(options);

  Scores scores(nodes, prompts.clean[0].size(0), options.per_position);
  EdgeAttribution out{Circuit::whole(nodes), {}, at::zeros({n_prompts}, torch::kFloat64), {}};
  if (!prompts.corrupted.empty()) out.corrupted = at::zeros({n_prompts}, torch::kFloat64);
  auto exact = at::zeros({nodes.n_senders(), nodes.n_receivers()}, torch::kFloat64);

  const auto bytes = 3 * senders_bytes(model, nodes) + way.size() * trace_bytes(model, nodes);
  int64_t done = 0;
  for (const auto& batch : batches(prompts, bytes, kBatchBytes)) {
    report(options.progress, "edges", done, n_prompts);
    const Decoder decoder(model, nodes, batch.n_tokens());
    Measure measure(decoder, prompts, batch);
    const bool each_component = options.method == EdgeMethod::eap_ig_activations;
    const bool keep_streams = each_component || options.method == EdgeMethod::exact;
    const auto clean = decoder.run(batch.clean_BT, keep_streams);
    measure.set_clean(clean.streams.back());
    put(out.clean, batch, measure.values(clean.streams.back().unsqueeze(0))[0]);
    std::optional<Decoder::Run> corrupted;
    if (out.corrupted.defined()) {
      corrupted = decoder.run(batch.corrupted_BT, /*keep_streams=*/false);
      put(out.corrupted, batch, measure.values(corrupted->streams.back().unsqueeze(0))[0]);
    }
    const auto change = wide(alternatives.of(batch, corrupted)) - wide(clean.senders);
    if (options.method == EdgeMethod::exact) {
      exact += exact_edges(decoder, measure, clean, change, chosen, options.progress);
    } else {
      Attribution attribution(decoder, measure, change, way, scores);
      if (each_component)
        attribution.of_activations(clean.streams, clean.senders);
      else
        attribution.of_embedding(clean.senders[0]);
    }
    done += batch.size();
  }
  report(options.progress, "edges", done, n_prompts);
  if (options.method == EdgeMethod::exact) {
    out.circuit.scores = exact / static_cast<double>(n_prompts);
    check_scores(out.circuit.scores);
    return out;
  }
  const auto mean = scores.mean(n_prompts);
  out.circuit.scores = mean.sum(0);
  check_scores(out.circuit.scores);
  if (options.per_position) out.by_position = mean;
  return out;
}

}  // namespace introspect::circuits

#include "introspect/circuits/run_circuit.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "circuits/decoder.h"
#include "circuits/masked_run.h"
#include "circuits/prompts.h"
#include "introspect/core/check.h"

namespace introspect::circuits {
namespace {

/// What two runs that compute the same in another order may differ by.
double rounding(const models::Model& model, double a, double b) {
  const double epsilon = model.dtype() == torch::kFloat64 ? 1e-12 : 1e-6;
  return epsilon * std::max({1.0, std::abs(a), std::abs(b)});
}

}  // namespace

torch::Tensor run_circuits(const models::Model& model, const Prompts& prompts,
                           const std::vector<Circuit>& circuits, const RunCircuitOptions& options) {
  const at::NoGradGuard no_grad;
  check_prompts("run_circuits", model, prompts, options.ablation == Ablation::patching);
  check<std::invalid_argument>(!circuits.empty(), "run_circuits: at least one circuit is needed, got none");
  const auto& nodes = circuits[0].nodes;
  std::vector<torch::Tensor> flags;
  for (const auto& circuit : circuits) {
    circuit.check_fits(model.cfg());
    check<ConfigError>(circuit.nodes == nodes, "run_circuits: circuits must be grouped alike");
    flags.push_back(circuit.in_graph);
  }
  const auto in_CUV = at::stack(flags);
  const auto n_circuits = in_CUV.size(0), n_prompts = static_cast<int64_t>(prompts.clean.size());
  const Alternatives alternatives(model, nodes, prompts, options);
  auto out = at::zeros({n_circuits, n_prompts}, torch::kFloat64);
  int64_t done = 0;
  for (const auto& batch : batches(prompts, 3 * senders_bytes(model, nodes), kBatchBytes / 2)) {
    const Decoder decoder(model, nodes, batch.n_tokens());
    Measure measure(decoder, prompts, batch);
    const auto clean = decoder.run(batch.clean_BT, /*keep_streams=*/true);
    measure.set_clean(clean.streams.back());
    std::optional<Decoder::Run> corrupted;
    if (options.ablation == Ablation::patching) corrupted = decoder.run(batch.corrupted_BT, false);
    const MaskedRun masked(decoder, 0, clean.streams[0], clean.senders, alternatives.of(batch, corrupted));
    const int64_t step = std::max<int64_t>(1, kBatchBytes / masked.bytes());
    for (int64_t first = 0; first < n_circuits; first += step) {
      report(options.progress, "circuits", done, n_circuits * n_prompts);
      const int64_t n = std::min(step, n_circuits - first);
      const auto values =
          measure.values(masked.run(in_CUV.narrow(0, first, n))).to(torch::kCPU, torch::kFloat64);
      for (size_t b = 0; b < batch.which.size(); ++b)
        out.narrow(0, first, n)
            .select(1, static_cast<int64_t>(batch.which[b]))
            .copy_(values.select(1, static_cast<int64_t>(b)));
      done += n * batch.size();
    }
  }
  report(options.progress, "circuits", done, n_circuits * n_prompts);
  return out;
}

Faithfulness faithfulness(const models::Model& model, const Prompts& prompts, const Circuit& circuit,
                          const FaithfulnessOptions& options) {
  Faithfulness out;
  out.shares = options.shares;
  check<std::invalid_argument>(!out.shares.empty() && out.shares.front() > 0 && out.shares.back() <= 1 &&
                                   std::ranges::is_sorted(out.shares),
                               "faithfulness: shares must ascend from above 0 to at most 1");
  auto ranked = circuit;
  if (!options.absolute) ranked.scores = -circuit.scores;
  const auto total = static_cast<double>(circuit.nodes.n_edges());
  auto empty = Circuit::whole(circuit.nodes);
  std::vector<Circuit> circuits{empty, empty};
  circuits[1].in_graph = at::zeros_like(empty.in_graph);
  for (const double share : out.shares) {
    circuits.push_back(ranked.top(static_cast<int64_t>(share * total + 1e-9), options.absolute));
    out.n_edges.push_back(circuits.back().n_edges());
  }
  const auto means = run_circuits(model, prompts, circuits, options).mean(1);
  const auto* const mean = means.const_data_ptr<double>();
  out.full = mean[0];
  out.empty = mean[1];
  check<Error>(std::isfinite(out.full) && std::isfinite(out.empty), "faithfulness: the metric is ", out.full,
               " with all edges and ", out.empty, " with none: activations of some prompt are not finite");
  check<std::invalid_argument>(std::abs(out.full - out.empty) > rounding(model, out.full, out.empty),
                               "faithfulness: the metric is ", out.full,
                               " with all edges and with none: there is nothing to keep");
  for (size_t i = 0; i < out.shares.size(); ++i) {
    out.metric.push_back(mean[i + 2]);
    out.faithfulness.push_back((out.metric.back() - out.empty) / (out.full - out.empty));
    if (i == 0) continue;
    const double width = out.shares[i] - out.shares[i - 1], f = out.faithfulness[i],
                 before = out.faithfulness[i - 1];
    out.cpr += width * (before + f) / 2;
    out.cmd += width * (std::abs(1 - before) + std::abs(1 - f)) / 2;
  }
  return out;
}

}  // namespace introspect::circuits

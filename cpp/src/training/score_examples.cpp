#include "introspect/training/score_examples.h"

#include <algorithm>
#include <numeric>

#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"

#include "core/on_device.h"
#include "engine/memory.h"
#include "training/example_tree.h"

namespace introspect::training {

ExampleScores score_examples(const models::Model& model, const std::vector<LoraExample>& examples,
                             int64_t memory_budget, const Progress& progress) {
  const at::NoGradGuard no_grad;
  const ExampleTree tree(model, examples, "score_examples");
  const engine::TokenBytes bytes(model.cfg(), model.dtype());
  const int64_t most = std::clamp<int64_t>(memory_budget / bytes.in_block, 1, engine::kMaxRowsPerProduct);
  std::vector<int64_t> all(examples.size());
  std::iota(all.begin(), all.end(), int64_t{0});
  ExampleScores out{at::zeros({tree.n_examples()}, torch::kFloat64),
                    at::zeros({tree.n_examples()}, torch::kBool)};
  int64_t done = 0;
  for (const auto& group : tree.groups(all, most)) {
    check_interrupt();
    const auto part = tree.part(group);
    const auto hooks = tree.additions(model, part, 0, model.cfg().n_layers);
    models::ForwardOptions forward;
    forward.parents = part.parents;
    forward.hooks = &hooks;
    forward.logits_at = models::LogitsAt::kPositions;
    forward.positions = part.reads;
    const auto logits_nV = model.forward(part.tokens, forward)[0];
    const auto labels = on_device(part.labels, logits_nV.device());
    const auto losses =
        at::cross_entropy_loss(logits_nV, labels, {}, at::Reduction::None).to(torch::kCPU, torch::kFloat64);
    check<Error>(at::isfinite(losses).all().item<bool>(), "score_examples: logits that are not finite");
    const auto right = logits_nV.argmax(-1).eq(labels).cpu();
    int64_t at = 0;
    for (const int64_t example : group) {
      const int64_t n = tree.n_targets(example);
      out.losses[example] = losses.narrow(0, at, n).mean();
      out.greedy[example] = right.narrow(0, at, n).all();
      at += n;
    }
    report(progress, "examples", done += static_cast<int64_t>(group.size()), tree.n_examples());
  }
  return out;
}

}  // namespace introspect::training

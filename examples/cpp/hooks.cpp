// Read and change activations: what each block adds to a guess, and what happens without one of its heads.
//
//     example_hooks MODEL.gguf

#include <iostream>
#include <memory>
#include <string>

#include <torch/types.h>

#include "introspect/hooks/activation_cache.h"
#include "introspect/hooks/hook_registry.h"
#include "introspect/models/model.h"

using namespace introspect;

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: example_hooks MODEL\n";
    return 2;
  }
  try {
    const auto model = models::Model::load(argv[1]);
    const auto& cfg = model->cfg();
    const auto tokens = model->to_tokens("The capital of France is");
    const int64_t paris = model->tokenizer().encode(" Paris", /*add_special_tokens=*/false).front();
    const auto vocab_ids = torch::tensor({paris});

    // Reading: the residual after every block at the last position, and nothing else.
    auto hooks = model->make_hooks();
    const auto cache = std::make_shared<hooks::ActivationCache>();
    for (int64_t layer = 0; layer < cfg.n_layers; ++layer)
      hooks.record(hooks::hook_name({hooks::Point::kResidPost, layer}), cache, {.part = {.positions = -1}});
    const auto plain = model->forward(
        tokens, {.hooks = &hooks, .logits_at = models::LogitsAt::kLast, .vocab_ids = vocab_ids});
    for (const auto& [name, resid_BD] : cache->items())  // the logit lens
      std::cout << name << ": logit of ' Paris' " << model->readout(resid_BD, vocab_ids).item<double>()
                << '\n';

    // Changing: each head of the last block switched off in turn.
    const int64_t last = cfg.n_layers - 1;
    for (int64_t head = 0; head < cfg.n_heads; ++head) {
      auto without = model->make_hooks();
      without.add(hooks::hook_name({hooks::Point::kZ, last}),
                  [head](const torch::Tensor& z_BTHK, hooks::Site) -> std::optional<torch::Tensor> {
                    auto changed = z_BTHK.clone();
                    changed.select(2, head).zero_();
                    return changed;
                  });
      const auto logit = model->forward(
          tokens, {.hooks = &without, .logits_at = models::LogitsAt::kLast, .vocab_ids = vocab_ids});
      std::cout << "without head " << head << " of block " << last << ": " << (logit - plain).item<double>()
                << '\n';
    }
  } catch (const std::exception& error) {
    std::cerr << "example_hooks: " << error.what() << '\n';
    return 1;
  }
}

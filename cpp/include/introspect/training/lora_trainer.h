#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/adapter.h"
#include "introspect/models/model.h"

namespace introspect::training {

/// What an adapter is trained to make a model say.
struct LoraExample {
  std::vector<int64_t> prompt;  ///< empty: the target's first token is given and the rest is learned
  std::vector<int64_t> target;  ///< the loss is that of these tokens
  std::map<int64_t, torch::Tensor> added;  ///< block -> direction [D], added to its output
  int64_t first = 0, last = 0;             ///< at these tokens of the prompt, [first, last)
};

struct LoraOptions {
  int64_t steps = 0;             ///< of the whole training
  int64_t batch_size = 8;        ///< examples in a step
  double lr = 1e-3, lr_end = 0;  ///< of the first step, and where a line from there would be after the last
  double clip = 1;               ///< longest gradient of all matrices together; 0: any
  uint64_t seed = 0;             ///< of the examples' order, see LoraTrainer
  int64_t memory_budget =
      int64_t{2} << 30;  ///< bytes for activations, and as many for residuals that are kept
};

/// One step, before its update.
struct LoraStep {
  int64_t step = 0;
  double loss = 0, gradient_norm = 0, lr = 0;
};

/// A LoRA adapter being trained on a model whose own weights stay as they are, and are shared.
///
///     LoraTrainer trainer(model, Adapter::create(*model, {.rank = 8, .targets = {"q_proj"}}), examples, {.steps = 200});
///     while (trainer.steps() < 200) std::cout << trainer.step().loss << "\n";
///     const auto adapted = model->with_adapter(*trainer.adapter());
///
/// The loss is the mean cross-entropy of a batch's target tokens, in float32 (float64 of a float64 model); Adam without
/// weight decay. The examples of a batch are one token tree, in which equal beginnings with equal injections run once,
/// without padding. Examples come in random order, each once before any comes again; those that stand one after another with
/// one injection stay together. What lies below the lowest block that is trained has no gradient: it runs once for all steps and its
/// residuals are kept as far as memory_budget has room. Equal arguments and threads give equal bits.
class INTROSPECT_EXPORT LoraTrainer {
 public:
  /// Throws std::invalid_argument for no examples, an example with nothing to learn, a span outside its prompt, directions
  /// that are not finite, or options out of range; std::out_of_range for tokens or blocks that the model does not have;
  /// ShapeError for an example longer than n_ctx or a direction that is not [D]; and as Model::with_adapter does.
  LoraTrainer(std::shared_ptr<const models::Model> model, std::shared_ptr<const models::Adapter> start,
              const std::vector<LoraExample>& examples, LoraOptions options);
  ~LoraTrainer();
  LoraTrainer(LoraTrainer&&) noexcept;
  LoraTrainer& operator=(LoraTrainer&&) noexcept;

  int64_t steps() const;  ///< updates done

  /// One update. Throws Error if the loss or the gradient is not finite: the adapter is then as it was before.
  LoraStep step(const Progress& progress = {});

  /// Loss and gradients of a batch of these examples as the next step would take them, before clipping:
  /// "model.layers.3.self_attn.q_proj.lora_A" -> [r, in]. Nothing is changed. Throws std::out_of_range.
  std::pair<double, std::map<std::string, torch::Tensor>> gradients(const std::vector<int64_t>& examples);

  /// As it stands now: a copy.
  std::shared_ptr<const models::Adapter> adapter() const;

  /// What a step over all examples costs beside running each by itself through all blocks.
  struct Cost {
    int64_t tokens = 0;       ///< of all examples, without the last of each, which nothing is read after
    int64_t nodes = 0;        ///< that run instead
    int64_t first_layer = 0;  ///< the lowest block that is trained: those below have no gradient
    int64_t n_params = 0;     ///< trained
    bool keeps_residuals = false;
  };
  Cost cost() const;

  /// Writes matrices, moments and the number of steps. Throws IoError.
  void save(const std::filesystem::path& file) const;
  /// Goes on from such a file: with the same numbers, bit for bit, as without the interruption. Throws IoError for a file
  /// that is missing or damaged, ConfigError for one of another training (model, its models::precision_name, kinds of
  /// device and, in bfloat16 on the CPU, ops::bfloat16_products; start, examples or options), of a version with other
  /// numbers and of versions that did not tell these. Nothing is changed then.
  void resume(const std::filesystem::path& file);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace introspect::training

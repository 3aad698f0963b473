#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "introspect/export.h"

namespace introspect {

/// What a forward pass does. kHooks is what hooks do with an activation, kReadout the logits in float32, kOther the rest.
enum class Stage : uint8_t {
  kEmbedding,
  kNorms,
  kQkv,
  kRotary,
  kAttention,
  kOutput,
  kMlpProducts,
  kActivation,
  kResidual,
  kUnembedding,
  kReadout,
  kHooks,
  kOther,
};
constexpr size_t kStages = static_cast<size_t>(Stage::kOther) + 1;

/// The least that a stage has to do.
///
/// flops: multiplications and additions of matrix products and of attention, two for each weight or key that a token
/// meets. bytes: weights, inputs and results, each once; of a lookup the rows looked up. Pointwise work has bytes only.
struct StageWork {
  double flops = 0;
  double bytes = 0;
};

struct StageCost {
  std::string stage;   ///< "embedding", "norms", "QKV", ...
  double seconds = 0;  ///< of this thread's clock; times of all stages add up to the life of the StageClock
  int64_t calls = 0;
  StageWork work;
};

/// Counts what the forward passes of this thread cost, by stage, while it lives. Where none does, a stage costs a test.
class INTROSPECT_EXPORT StageClock {
 public:
  StageClock();
  ~StageClock();
  StageClock(const StageClock&) = delete;
  StageClock& operator=(const StageClock&) = delete;

  /// Up to now: every stage, in the order of Stage.
  std::vector<StageCost> costs();

  Stage enter(Stage stage);  ///< returns the stage so far
  void leave(Stage before);
  void count(const StageWork& work);  ///< to the stage of now

 private:
  void charge();

  std::array<StageCost, kStages> costs_;
  Stage now_ = Stage::kOther;
  std::chrono::steady_clock::time_point since_;
  StageClock* before_;
};

}  // namespace introspect

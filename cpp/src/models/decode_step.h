#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "core/device_recording.h"
#include "introspect/models/generate.h"
#include "models/decode_hooks.h"

namespace introspect::models {

/// The forward passes of a generation, one token a row each, by the same work on the device every time: tokens, the place of
/// the new position and all that is read of the cache stand at fixed addresses. Where the device can (DeviceRecording), that
/// work is recorded at the first step and replayed at the others.
///
/// Attention reads a fixed number of positions, of which a mask, made on the device from the place, hides those that are not
/// written yet; when they are outgrown, more are read and the work is recorded again.
class DecodeStep {
 public:
  /// The step of n more positions of a cache, for `how`; null where each step is to be a pass of its own (Model::forward).
  ///
  /// Throws ConfigError, for Step::kStatic, if the model, its devices or what is hooked do not allow it.
  static std::unique_ptr<DecodeStep> of(const Model& model, cache::KVCache& cache,
                                        const hooks::HookRegistry* hooks, int64_t n, Step how);
  /// Positions that a cache reserves for so many, so that no step makes it move.
  static int64_t capacity(int64_t positions) {
    return (positions + kAlignment - 1) / kAlignment * kAlignment;
  }

  ~DecodeStep();
  DecodeStep(const DecodeStep&) = delete;
  DecodeStep& operator=(const DecodeStep&) = delete;

  /// The logits [B, V] after tokens int64 [B, 1], as Model::forward reads them out, until the next call. The cache is longer
  /// by one.
  torch::Tensor forward(const torch::Tensor& tokens_B1);

 private:
  static constexpr int64_t kAlignment = 64;
  DecodeStep(const Model& model, cache::KVCache& cache, DecodeHooks hooks, NewPositions positions);
  void begin(int64_t place);
  torch::Tensor work() const;
  nn::Positions positions(const torch::Tensor& number_B1, bool local) const;

  const Model& model_;
  cache::KVCache& cache_;
  hooks::HookRegistry hooks_;
  int64_t last_, n_read_ = 0;  // positions that there may be, and that attention reads
  torch::Tensor tokens_B1_, place_;
  torch::Tensor numbers_BS_;  // [B or 1, last_]: of each position among the real tokens of its row, from 1 on
  torch::Tensor real_BS_;     // bool [B, last_]; undefined if all are
  torch::Tensor columns_S_;   // 0, 1, ... last_ - 1
  torch::Tensor seen_, hidden_;  // 0 and -infinity in the model's dtype
  std::unique_ptr<DeviceRecording> recording_;
};

}  // namespace introspect::models

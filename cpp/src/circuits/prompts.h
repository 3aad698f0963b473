#pragma once

#include <optional>
#include <vector>

#include <torch/types.h>

#include "circuits/decoder.h"
#include "introspect/circuits/edge_attribution.h"

namespace introspect::circuits {

/// Throws before long work: ShapeError for prompts that are not int64 [T] or pairs of unequal length (both lengths and the
/// first token that differs are named), std::out_of_range for tokens outside the vocabulary, std::invalid_argument for
/// no prompts, corrupted prompts that are needed and not there, or another number of metrics than one or one each.
void check_prompts(const char* who, const models::Model& model, const Prompts& prompts, bool needs_corrupted);

inline constexpr int64_t kBatchBytes = int64_t{1} << 29;  ///< of what is kept of a batch at a time

/// Prompts of one length that run together.
struct Batch {
  std::vector<size_t> which;  // among the prompts
  torch::Tensor clean_BT, corrupted_BT;

  int64_t size() const { return clean_BT.size(0); }
  int64_t n_tokens() const { return clean_BT.size(1); }
};

/// The prompts in batches, shortest first, each of at most most_bytes / bytes_per_token tokens (at least one prompt).
std::vector<Batch> batches(const Prompts& prompts, int64_t bytes_per_token, int64_t most_bytes);

/// Bytes of what every sender writes for one token, in float32 or float64.
int64_t senders_bytes(const models::Model& model, const Nodes& nodes);

/// Bytes that a Decoder::Trace keeps of one token, likewise.
int64_t trace_bytes(const models::Model& model, const Nodes& nodes);

/// What takes the place of a sender's output, for one batch after another.
class Alternatives {
 public:
  Alternatives(const models::Model& model, const Nodes& nodes, const Prompts& prompts,
               const AblationOptions& options);

  /// [senders, B or 1, T or 1, D], in the model's dtype; `corrupted` is the batch's, for patching.
  torch::Tensor of(const Batch& batch, const std::optional<Decoder::Run>& corrupted) const;

 private:
  Ablation ablation_;
  torch::Tensor mean_;  // [senders, 1, T or 1, D]
};

/// The metrics of a batch: what they are of streams after the last block.
class Measure {
 public:
  Measure(const Decoder& decoder, const Prompts& prompts, const Batch& batch);

  /// The clean run's, for metrics that compare with it.
  void set_clean(const torch::Tensor& last_BTD);

  /// [M, B] of streams [M, B, T, D]; in float32, or float64 of a float64 model.
  torch::Tensor values(const torch::Tensor& last_MBTD) const;

  /// The gradient of each row's metric at its stream, [M, B, T, D].
  torch::Tensor gradient(const torch::Tensor& last_MBTD) const;

 private:
  torch::Tensor logits(const torch::Tensor& x, const torch::Tensor& vocab_ids) const;
  torch::Tensor value_of_rows(size_t b, const torch::Tensor& x_MPD) const;
  torch::Tensor value_of_all(const torch::Tensor& last_MBTD) const;

  const Decoder& decoder_;
  const LogitsMetric& of_logits_;
  std::vector<const analysis::Metric*> metrics_;  // of each prompt
  std::vector<analysis::MetricReads> reads_;
  std::vector<torch::Tensor> positions_, references_;
};

}  // namespace introspect::circuits

#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/hooks/hook_point.h"
#include "introspect/models/model.h"

namespace introspect::activations {

/// Which tokens of a text are read: one, or the mean over a span.
struct ReadPosition {
  int64_t first = -1;  ///< negative: counted from the text's end
  bool is_span = false;
  std::optional<int64_t> last;  ///< a span's end, which is not read; none: to the text's end

  static ReadPosition token(int64_t index) { return {index, false, std::nullopt}; }
  static ReadPosition span(int64_t first, std::optional<int64_t> last) { return {first, true, last}; }
  bool operator==(const ReadPosition&) const = default;
};

/// "-1", "mean 2:-1", "mean 2:".
INTROSPECT_EXPORT std::string to_string(const ReadPosition& position);

/// Where in a model activations are read.
struct ReadOptions {
  std::optional<std::vector<int64_t>> layers;  ///< block numbers; default: 1 to n_layers - 1
  ReadPosition position;
  /// Of a block. At points with heads the heads stand one after another; those where every head has a d_model of its
  /// own, and those of one number, are no activation to make a direction of.
  hooks::Point point = hooks::Point::kResidPost;
  /// Reads the last block's hook_resid_post after the final norm: transformers' last hidden state, and so repeng's.
  bool last_layer_after_norm = false;
};

struct CollectOptions {
  ReadOptions read;
  int64_t memory_budget = int64_t{1} << 30;  ///< bytes of activations at a time, the result aside
  Progress progress;
};

/// Activations of texts in one model: what directions are made from. A value that needs the model no more.
struct INTROSPECT_EXPORT Activations {
  torch::Tensor values_NLD;     ///< float32 (float64 of a float64 model) [texts, layers, D] on the CPU
  std::vector<int64_t> layers;  ///< ascending
  ReadPosition position;
  hooks::Point point = hooks::Point::kResidPost;
  bool last_layer_after_norm = false;
  std::string texts_hash;  ///< of the texts in their order
  std::string model_name, model_hash;
  std::string model_type;  ///< as in config.json: "qwen2"

  /// Writes the values as one tensor and the rest as metadata. Throws IoError.
  void save(const std::filesystem::path& path) const;
  /// Throws IoError for a file that does not hold activations.
  static Activations load(const std::filesystem::path& path);
};

/// Reads a model at chosen tokens of texts.
///
/// What texts begin with is run once, however many they are (engine::run_trie), equal texts are read once, and nothing
/// above the highest layer is run.
/// Throws std::invalid_argument for no texts, an empty text, no layers, an empty span, a point without a direction or a
/// budget too small for one token, std::out_of_range for a layer or a position that is not there, naming the text,
/// HookError for a point that this model does not have, ShapeError for a text longer than n_ctx: all before the first
/// forward pass.
INTROSPECT_EXPORT Activations collect_activations(const models::Model& model,
                                                  const std::vector<std::string>& texts,
                                                  const CollectOptions& options = {});

/// What collect_activations would say of itself, with values and texts left out. Throws as it does for `read`.
INTROSPECT_EXPORT Activations without_values(const models::Model& model, const ReadOptions& read);

}  // namespace introspect::activations

#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/intervention.h"
#include "introspect/steering/diagnostics.h"

namespace introspect::steering {

/// Where a control vector came from. None of it changes what the vector does, and none of it counts for equality.
struct VectorOrigin {
  std::string model_name;
  std::string model_hash;  ///< fingerprint of the weights it was trained on; empty: unknown
  std::string method;      ///< "pca_center", "pca_diff", "mean_diff", "combination", ...; empty: unknown
  int64_t n_pairs = 0;
  std::map<int64_t, std::vector<double>> spectrum;  ///< layer -> largest shares of variance (PCA methods)
  int64_t folds = 0;  ///< of the pairs, for what diagnostics says of held-out ones; 0: none
  std::map<int64_t, LayerDiagnostics> diagnostics;  ///< by layer; empty where not known
  std::string point = {};              ///< of a block, where it was read: "hook_resid_post"; empty: unknown
  std::string read_position = {};      ///< the tokens it was read at: "-1", "mean 2:5"; empty: unknown
  bool last_layer_after_norm = false;  ///< the last layer was read after the final norm
  std::string concept_name = {};       ///< what it stands for, as its maker called it; empty: unknown
};

/// One direction per layer: read at the output of block l, added to the output of block l (0-based).
///
/// A value: operators make new vectors, and strength is not part of it (`20 * vector` is another vector). Directions
/// are float32 [d_model] on the CPU, finite and of one width.
class INTROSPECT_EXPORT ControlVector {
 public:
  using Directions = std::map<int64_t, torch::Tensor>;

  /// Takes directions of any float dtype and device and keeps float32 copies.
  ///
  /// `model_type` is the architecture's name as in config.json ("qwen2"), GGUF's model_hint.
  /// Throws ConfigError without any direction, std::out_of_range for a negative layer, ShapeError for a direction
  /// that is not a float [d_model] of the others' width, std::invalid_argument for NaN or infinity.
  ControlVector(std::string model_type, const Directions& directions, VectorOrigin origin = {});

  const std::string& model_type() const { return model_type_; }
  const Directions& directions() const { return directions_; }
  const VectorOrigin& origin() const { return origin_; }
  int64_t d_model() const { return directions_.begin()->second.size(0); }
  std::vector<int64_t> layers() const;  ///< ascending

  /// Sum over the union of the layers: a layer only one of them has keeps that one's direction.
  /// Throws ShapeError for different widths and ConfigError for different model types.
  ControlVector operator+(const ControlVector& other) const;
  ControlVector operator-(const ControlVector& other) const;
  ControlVector operator-() const;
  /// Throws std::invalid_argument for a factor that is NaN or infinite.
  ControlVector operator*(double factor) const;
  /// Throws std::invalid_argument for a divisor that is zero or NaN.
  ControlVector operator/(double divisor) const;
  /// Length of each layer's direction.
  std::map<int64_t, double> norms() const;
  /// Cosine of the directions of every layer both have; NaN where one of them is zero.
  /// Throws ShapeError for different widths.
  std::map<int64_t, double> cosine(const ControlVector& other) const;
  /// Same model type, same layers, same numbers bit for bit; the origin does not count.
  bool operator==(const ControlVector& other) const;

  /// Writes the file repeng and llama.cpp read: architecture "controlvector", keys controlvector.model_hint and
  /// controlvector.layer_count, one float32 tensor direction.{layer} each. The origin stands in a key of ours,
  /// introspect.origin, which both pass over.
  ///
  /// Throws ConfigError when there is a direction for layer 0, which llama.cpp refuses (save_safetensors keeps it);
  /// IoError when the file cannot be written, in which case none is left behind.
  void export_gguf(const std::filesystem::path& path) const;
  /// Reads such a file, repeng's and llama.cpp's included. Throws IoError for one that is not a control vector.
  static ControlVector import_gguf(const std::filesystem::path& path);

  /// Writes direction.{layer} and the origin as metadata.
  void save_safetensors(const std::filesystem::path& path) const;
  static ControlVector load_safetensors(const std::filesystem::path& path);

  /// By the file's ending, .gguf or .safetensors; std::invalid_argument for any other.
  void save(const std::filesystem::path& path) const;
  static ControlVector load(const std::filesystem::path& path);

 private:
  ControlVector plus(const ControlVector& other, double factor) const;

  std::string model_type_;
  Directions directions_;
  VectorOrigin origin_;
};

inline ControlVector operator*(double factor, const ControlVector& vector) {
  return vector * factor;
}

/// The vector under one random orthogonal map of the residual stream: the null for "any vector of this shape".
///
/// All layers go through the same map, so every norm and every cosine between layers stays. Only the span of the
/// directions needs mapping: with directions^T = Q R, the result is Q' R for a Haar-random frame Q' of the same
/// shape, which is distributed as O Q R for a Haar-random orthogonal O, without a [d_model, d_model] matrix.
INTROSPECT_EXPORT ControlVector random_rotation(const ControlVector& vector, uint64_t seed);

/// Independent random directions of the lengths the vector's have, uniform on each layer's sphere.
INTROSPECT_EXPORT ControlVector random_directions(const ControlVector& vector, uint64_t seed);

/// The vector's directions of the blocks first_layer to last_layer (both included). Throws as as_intervention does.
INTROSPECT_EXPORT std::map<int64_t, torch::Tensor> directions_in(const ControlVector& vector,
                                                                 int64_t n_layers, int64_t first_layer,
                                                                 int64_t last_layer);

/// Adds the vector's directions of the blocks first_layer to last_layer (both included) to those blocks' outputs.
///
/// Throws std::out_of_range for a range that is not inside a model of `n_layers`, ConfigError where the vector has no
/// direction in it.
INTROSPECT_EXPORT hooks::Intervention as_intervention(const ControlVector& vector, int64_t n_layers,
                                                      int64_t first_layer, int64_t last_layer);

}  // namespace introspect::steering

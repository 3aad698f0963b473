#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/activations/collect.h"
#include "introspect/export.h"
#include "introspect/hooks/hook_point.h"
#include "introspect/steering/control_vector.h"

namespace introspect::analysis {

/// How a probe's weights come from activations. All but kRidge and kDirection have formulas for a log-odds.
enum class ProbeKind {
  kLogistic,  // L2-regularised logistic regression, softmax for more than two classes
  kMassMean,  // the difference of the classes' means (Marks & Tegmark 2023); for more classes the nearest mean
  kMassMeanCovariance,  // the same after the inverse of the covariance within classes: linear discriminants
  kRidge,               // least squares on targets 1 and -1 with L2 penalty
  kDirection,           // a direction that was given: its projection
};

/// "logistic", "mass_mean", "mass_mean_covariance", "ridge", "direction". Throws std::invalid_argument that lists them.
INTROSPECT_EXPORT ProbeKind parse_probe_kind(const std::string& name);
INTROSPECT_EXPORT std::string to_string(ProbeKind kind);

/// A linear readout of activations at one place of one model.
///
/// Scores are w.(x - mean) / scale + b. Two classes have one row of weights, whose score is of the second class: above 0
/// it is predicted. More have one row each, and the highest is predicted.
struct INTROSPECT_EXPORT Probe {
  ProbeKind kind = ProbeKind::kLogistic;
  torch::Tensor weights_KD, bias_K;  ///< float64 on the CPU, K = 1 or the number of classes
  torch::Tensor mean_D, scale_D;     ///< float64: the scaler, fitted on the texts of the fit
  std::vector<std::string> classes;  ///< two or more
  std::string name;                  ///< what it reads, as its maker calls it
  std::optional<double> threshold;   ///< of the score, of a monitor

  // Where it reads, and what it was made of. A hash that is empty is not known.
  hooks::Point point = hooks::Point::kResidPost;
  int64_t layer = 0;
  activations::ReadPosition position;
  bool last_layer_after_norm = false;
  std::string model_name, model_hash, model_type;
  std::string data_hash;  ///< of texts and labels
  int64_t n_texts = 0;
  double C = 0;  ///< the inverse strength of the penalty; 0: none

  int64_t width() const { return weights_KD.size(1); }

  /// Scores [...] of activations [..., D], or [..., K] for more than two classes, in float64 on the CPU.
  /// Throws ShapeError for another width, std::invalid_argument for activations that are not finite.
  torch::Tensor scores(const torch::Tensor& x) const;

  /// The classes' probabilities [..., K], two of them for one row of weights. Throws ConfigError for kinds without.
  torch::Tensor probabilities(const torch::Tensor& x) const;

  /// The weights in the units of the activations, scale taken in, of length 1: what to add to make the score rise.
  /// Throws ConfigError for more than two classes or a point that is not the residual stream after a block.
  steering::ControlVector direction() const;

  /// Throws ShapeError, ConfigError or std::invalid_argument for fields that do not go together.
  void validate() const;

  /// One .safetensors file, the origin as metadata. Throws IoError.
  void save(const std::filesystem::path& path) const;
  /// Throws IoError for a file that does not hold a probe.
  static Probe load(const std::filesystem::path& path);
};

/// A probe whose score is the projection on a direction [D], x.u with u = v / |v|. Throws as Probe::validate.
INTROSPECT_EXPORT Probe probe_of_direction(const torch::Tensor& direction_D, int64_t layer,
                                           const std::string& name = "",
                                           hooks::Point point = hooks::Point::kResidPost);

/// Throws ConfigError unless the probe was made for this model: its hash, its width and layer. `who` begins the message.
INTROSPECT_EXPORT void check_model(const std::string& who, const Probe& probe, const models::Model& model);

}  // namespace introspect::analysis

#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

/// What a lens does to a residual stream before the model's own final norm and unembedding read it.
enum class LensKind {
  logit,  ///< nothing: nostalgebraist 2020
  tuned,  ///< h + W h + b, trained layer by layer to predict as the model does: Belrose et al. 2023, arXiv:2303.08112
  jacobian,  ///< J h, the mean effect of h on the residual after the last block: Gurnee et al. 2026
};

INTROSPECT_EXPORT std::string to_string(LensKind kind);
/// Throws ConfigError that lists the names.
INTROSPECT_EXPORT LensKind parse_lens_kind(const std::string& name);

/// What a lens reads one layer through.
struct Translator {
  torch::Tensor W;  // [D, D], float32 or float64
  torch::Tensor b;  // [D]; undefined: none
};

/// The model that a lens is of, and where the lens comes from.
struct LensOrigin {
  std::string model_name;
  std::string model_hash;    // Model::hash; empty: not known, as in files of other packages
  std::string unembed_hash;  // unembedding_hash; empty: not known
  int64_t n_layers = 0, d_model = 0;
  std::string notes = "{}";  // JSON: how it was made
};

/// The identity of an unembedding in the files of the tuned-lens package: the SHA-256 of what numpy prints of W_U with
/// one digit. Empty for a matrix of 1,000 numbers or fewer, which numpy prints whole, and for a model whose blocks stay in
/// their files.
INTROSPECT_EXPORT std::string unembedding_hash(const models::Model& model);

/// Residuals of every layer as the next token's logits, as one value.
///
/// Layers are numbers of blocks, whose output is read; -1 is the stream before the first block. After the last block
/// every lens is the model's own readout. Statistics of the final norm are those of what it is given, at every layer.
///
///     const auto lens = Lens::load("lens/smollm2");               // a folder of the tuned-lens package, say
///     lens.logits(*model, resid_LD, lens.layers());               // [L, V], float32
class INTROSPECT_EXPORT Lens {
 public:
  static Lens logit(const models::Model& model);

  /// Throws ShapeError for translators that are not [D, D] and [D], std::out_of_range for one of a layer that has none
  /// (the last has none, nor has the embedding in a Jacobian lens), std::invalid_argument for values that are not finite,
  /// a logit lens with translators, or another one without.
  Lens(LensKind kind, LensOrigin origin, std::map<int64_t, Translator> translators);

  LensKind kind() const { return kind_; }
  const LensOrigin& origin() const { return origin_; }
  const std::map<int64_t, Translator>& translators() const { return translators_; }

  /// The layers that it reads, ascending, the last block among them.
  std::vector<int64_t> layers() const;

  /// Hex SHA-256 of its kind and translators: lenses of one hash read alike.
  const std::string& hash() const { return hash_; }

  /// Throws ShapeError for a model of another width or depth, ConfigError for another model: another checkpoint or, where
  /// the lens does not know its checkpoint, another unembedding.
  void check_model(const models::Model& model) const;

  /// The same lens for another model of its sizes: one that was fine-tuned, say. Throws ShapeError.
  Lens rebound(const models::Model& model) const;

  /// Residuals [..., D] of a layer as the final norm is given them, [..., D] in float32 (float64 of float64 residuals).
  /// Throws std::out_of_range for a layer that it does not read, ShapeError for another D.
  torch::Tensor translate(const torch::Tensor& resid, int64_t layer) const;

  /// Logits [..., layers, V] of residuals [..., layers, D], with float32 readout (Model::readout); vocab_ids int64 [n]:
  /// of these tokens only. Throws as check_model and translate do.
  torch::Tensor logits(const models::Model& model, const torch::Tensor& resid,
                       const std::vector<int64_t>& layers, const torch::Tensor& vocab_ids = {}) const;

  /// Writes a .safetensors file; the .pt of a Jacobian lens, in float16 as published; or else the folder of the tuned-lens
  /// package, params.pt (float32) and config.json, which only a tuned lens of all layers fits into. Throws ConfigError for what does
  /// not fit, IoError.
  void save(const std::filesystem::path& path) const;

  /// Reads what save writes, and those packages' own files; nothing in them is executed. A .pt knows no model but its
  /// width: n_layers is then one more than its last layer's. Throws IoError for a file that is damaged, ConfigError for
  /// one of another kind.
  static Lens load(const std::filesystem::path& path);

 private:
  LensKind kind_;
  LensOrigin origin_;
  std::map<int64_t, Translator> translators_;
  std::string hash_;
};

}  // namespace introspect::analysis

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/operands.h"
#include "introspect/ops/sparse_rows.h"

namespace introspect::sae {

/// How pre-activations p [.., F] of a row become its features f.
enum class Architecture : uint8_t {
  standard,  ///< relu(p): Bricken et al. 2023
  gated,  ///< relu(e^r_mag q + b_mag) where q + b_gate > 0, q = x W_enc: Rajamanoharan et al. 2024, 2404.16014
  topk,   ///< the k largest of relu(p), the rest 0: Gao et al. 2024, 2406.04093
  abstopk,           ///< the k largest of |p|, with their signs: 2510.00404
  batchtopk,         ///< the k N largest of the relu(p) of N rows together: Bussmann et al. 2024, 2412.06410
  jumprelu,          ///< p where p > threshold, else 0: Rajamanoharan et al. 2024, 2407.14435
  matching_pursuit,  ///< one feature after another, that which fits what is left best: 2506.03093
  groupmax,          ///< the largest of relu(p) in each of k groups of F / k neighbours: sparsify
};

/// SAELens's names: "standard", "topk", ... The inverse throws ConfigError that lists them.
INTROSPECT_EXPORT std::string to_string(Architecture architecture);
INTROSPECT_EXPORT Architecture parse_architecture(const std::string& name);

/// What is done to an input before b_dec is taken off, and undone to what is decoded.
enum class InputNorm : uint8_t {
  none,
  scale,          ///< x * input_scale ("expected_average_only_in" that was not folded), undone
  constant_norm,  ///< x sqrt(D) / |x| ("constant_norm_rescale"), undone
  layer_norm,     ///< (x - mean) / (std + eps), std of D - 1, undone
  whitening,  ///< "covariance_whitening": of training alone, since it folds into the weights (whitening.h)
};

INTROSPECT_EXPORT std::string to_string(InputNorm norm);

/// What a dictionary computes, weights aside.
struct DictionaryConfig {
  Architecture architecture = Architecture::standard;
  double k =
      0;  ///< of topk, abstopk, batchtopk (the mean a row), groupmax and the most steps of matching_pursuit
  bool relu = true;            ///< topk: false keeps negative ones of the k largest p, as Qwen Scope has it
  bool subtract_b_dec = true;  ///< p is of x - b_dec ("apply_b_dec_to_input"); false for transcoders
  /// p is times |W_dec_i| before the choice, which f keeps, and decode divides by it ("rescale_acts_by_decoder_norm").
  bool rank_by_decoder_norm = false;
  InputNorm input_norm = InputNorm::none;
  double input_scale = 1;
  double layer_norm_eps = 1e-5;
  double residual_threshold = 1e-2;  ///< matching pursuit ends a row whose rest is shorter
  bool operator==(const DictionaryConfig&) const = default;
};

/// The tensors of a dictionary, in one floating dtype and on one device, feature by feature: row i is feature i.
///
/// SAELens's W_enc is the transpose. Undefined where an architecture has none.
struct DictionaryWeights {
  torch::Tensor W_enc_FD;     ///< [F, d_in]; of matching pursuit undefined: it encodes with W_dec
  torch::Tensor b_enc_F;      ///< of all but gated and matching pursuit; undefined: zero
  torch::Tensor W_dec_FD;     ///< [F, d_out]
  torch::Tensor b_dec_D;      ///< [d_out]; undefined: zero
  torch::Tensor threshold_F;  ///< jumprelu: in the space of p; [F]
  torch::Tensor b_gate_F, b_mag_F, r_mag_F;  ///< gated
  torch::Tensor W_skip_DD;  ///< [d_out, d_in]: x W_skip^T is added to what is decoded (skip transcoders)

  /// Those that there are, under SAELens's names ("W_enc", ...), in these layouts.
  INTROSPECT_EXPORT hooks::Operands operands() const;
  INTROSPECT_EXPORT static DictionaryWeights from_operands(const hooks::Operands& operands);
};

/// Where an activation stands that a dictionary reads or writes, and how wide it is there.
struct DictionarySite {
  std::string hook_name;  ///< "blocks.3.hook_resid_post"; empty: not known
  int64_t width = 0;      ///< D, or H K of points with heads, which stand one after another
  int64_t model = 0;      ///< of crosscoders between models: which one
  bool operator==(const DictionarySite&) const = default;
};

/// What a dictionary was trained on, as far as its file says. It is compared with a model before anything runs.
struct DictionaryOrigin {
  std::vector<DictionarySite> inputs,
      outputs;  ///< empty: not known. Several of a crosscoder, side by side in d_in and d_out
  std::string model_name, model_hash;  ///< empty: not known
  std::string release, sae_id;         ///< of from_pretrained
  std::optional<int64_t> context_size;
  std::optional<bool> prepend_bos;
  bool centers_writing_weights =
      false;  ///< the model had weights that write to the stream less their mean (TransformerLens)
  bool masks_bos = false;    ///< its features are zero at the BOS token (circuit-tracer)
  std::string notes = "{}";  ///< JSON: all that its file said

  bool operator==(const DictionaryOrigin&) const = default;
};

/// Features that are not 0, row by row: offsets int64 [N + 1], indices int64 [entries] ascending within a row, and values
/// [entries] of the dictionary's dtype.
struct SparseFeatures : ops::SparseRows {
  int64_t d_sae = 0;

  /// [N, F] with zeros.
  INTROSPECT_EXPORT torch::Tensor dense() const;
  /// Those of f [N, F] that are not 0.
  INTROSPECT_EXPORT static SparseFeatures of(const torch::Tensor& f_NF);
};

/// A sparse autoencoder, transcoder or crosscoder: an overcomplete set of directions, and how inputs are read in it.
///
/// A value: nothing changes it, copies share its tensors. A transcoder writes another width or point than it reads; a
/// crosscoder reads and writes several sites side by side. Of bfloat16 and float16 weights everything is computed in
/// float32 and rounded last: features and what is decoded are those of the same weights in float32.
///
///     const auto sae = Dictionary::load("sae/smollm2-resid-15");
///     const auto f_NF = sae.encode(x_ND), x_hat = sae.decode(f_NF);
class INTROSPECT_EXPORT Dictionary {
 public:
  /// Throws ShapeError for tensors that do not fit one another, ConfigError for ones that are missing or not of this
  /// architecture, std::invalid_argument for values that are not finite, k out of 1 to F and a norm or number out of range.
  Dictionary(DictionaryConfig config, DictionaryWeights weights, DictionaryOrigin origin = {});

  /// Of tensors that were checked before, without another look at their values: an operator's, at every step.
  static Dictionary of_checked(DictionaryConfig config, DictionaryWeights weights);

  const DictionaryConfig& config() const { return config_; }
  const DictionaryWeights& weights() const { return weights_; }
  const DictionaryOrigin& origin() const { return origin_; }
  int64_t d_in() const;
  int64_t d_out() const { return weights_.W_dec_FD.size(1); }
  int64_t d_sae() const { return weights_.W_dec_FD.size(0); }
  torch::ScalarType dtype() const { return weights_.W_dec_FD.scalar_type(); }
  torch::Device device() const { return weights_.W_dec_FD.device(); }

  /// Hex SHA-256 of config and weights: dictionaries of one hash compute alike.
  const std::string& hash() const;

  /// What goes into the encoder, and what undoes it: x_hat = decoded * scale + shift; undefined where nothing is to be done.
  struct Input {
    torch::Tensor x, scale, shift;
  };
  /// x [.., d_in] in the dtype it computes in, normalised, without b_dec if that is subtracted. Throws ShapeError.
  Input input(const torch::Tensor& x) const;

  /// p [.., F]: what the architecture makes features of (of gated: q), in the dtype it computes in. Throws ShapeError,
  /// and ConfigError for matching pursuit, which has none.
  torch::Tensor pre_activations(const torch::Tensor& x) const;

  /// Features f [.., F] of x [.., d_in]. With a gradient where x or the weights want one; without, as encode_sparse.
  /// Rows of batchtopk are ranked together.
  torch::Tensor encode(const torch::Tensor& x) const;

  /// encode for features `ids` int64 [n] only: [.., n]. Standard, gated and jumprelu ones compute no others.
  /// Throws ShapeError, and std::out_of_range.
  torch::Tensor encode(const torch::Tensor& x, const torch::Tensor& ids) const;

  /// The features of rows [N, d_in] that are not 0, without a matrix [N, F]: encoder and choice go tile by tile.
  SparseFeatures encode_sparse(const torch::Tensor& x_ND) const;

  /// f W_dec + b_dec [.., d_out], input norm undone and the skip added, for which it needs the x that f is of.
  /// Throws ShapeError, and std::invalid_argument if x is needed (needs_input) and not given.
  torch::Tensor decode(const torch::Tensor& f, const torch::Tensor& x = {}) const;
  torch::Tensor decode(const SparseFeatures& f, const torch::Tensor& x_ND = {}) const;
  bool needs_input() const {
    return config_.input_norm == InputNorm::constant_norm || config_.input_norm == InputNorm::layer_norm ||
           weights_.W_skip_DD.defined();
  }

  /// decode(encode(x)), features not rounded in between: [.., d_out] in the dtype of the dictionary.
  torch::Tensor forward(const torch::Tensor& x) const;

  /// Features of one dictionary in another dtype or on another device.
  Dictionary to(torch::ScalarType dtype) const;
  Dictionary to(torch::Device device) const;

  /// The same function with |W_dec_i| = 1: features, thresholds and biases are times the norms. Throws ConfigError for
  /// matching pursuit, whose rows are of length 1, and for a choice of the largest p, which would be another, unless they
  /// are ranked by norm already.
  Dictionary fold_decoder_norm() const;

  /// The same function with input_norm none, of one with `scale`; itself if there is none. Throws ConfigError for others.
  Dictionary fold_input_scale() const;

  Dictionary with_origin(DictionaryOrigin origin) const;

  /// Length of each decoder row, [F].
  torch::Tensor decoder_norms() const;

 private:
  Dictionary() = default;
  friend class CrossLayerTranscoder;  // computes in between as they do, before anything is rounded
  void check_rows(const torch::Tensor& x) const;
  torch::Tensor features(const torch::Tensor& x) const;
  SparseFeatures sparse_features(const torch::Tensor& x_ND) const;
  torch::Tensor decoded(const torch::Tensor& f) const;
  torch::Tensor decoded(const SparseFeatures& f) const;
  torch::Tensor finish(torch::Tensor y, const torch::Tensor& x) const;

  DictionaryConfig config_;
  DictionaryWeights weights_;
  DictionaryOrigin origin_;
  mutable std::string hash_;
};

/// The features of p [.., F] (of gated: q) of rows, as the config and weights say, with gradients: relu's, those of the
/// kept of a choice, and of jumprelu p's where it is kept. Rows of batchtopk are ranked together.
INTROSPECT_EXPORT torch::Tensor activate(const DictionaryConfig& config, const DictionaryWeights& weights,
                                         const torch::Tensor& p);

}  // namespace introspect::sae

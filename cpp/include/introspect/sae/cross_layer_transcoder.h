#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/sae/dictionary.h"

namespace introspect::sae {

/// A cross-layer transcoder: the features of layer l read what enters its MLP and write what leaves the MLPs of l and of
/// all layers above.
///
///     f_l = act(x_l W_enc_l + b_enc_l),  y_t = sum over l <= t of f_l W_dec_{l -> t} + b_dec_t (+ x_t W_skip_t^T)
///
/// Each layer is a Dictionary whose d_out are the outputs of l to L - 1 side by side, so that W_dec_l is [F, L - l, D]. A
/// value, as a Dictionary is. Source: Ameisen et al. 2025, transformer-circuits.pub/2025/attribution-graphs/methods.html.
class INTROSPECT_EXPORT CrossLayerTranscoder {
 public:
  /// layers: of one d_in, dtype and device, layer l with d_out (L - l) D and neither b_dec nor skip nor input norm of its own.
  /// b_dec [L, D]; undefined: zero. W_skip [L, D, d_in] or undefined. origin: L sites in and out, in order, or none.
  /// Throws ShapeError and ConfigError for what does not fit.
  CrossLayerTranscoder(std::vector<Dictionary> layers, torch::Tensor b_dec_LD, torch::Tensor W_skip_LDD = {},
                       DictionaryOrigin origin = {});

  int64_t n_layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t d_in() const { return layers_.front().d_in(); }
  int64_t d_out() const { return layers_.back().d_out(); }
  int64_t d_sae() const { return layers_.front().d_sae(); }  ///< features of a layer
  torch::ScalarType dtype() const { return layers_.front().dtype(); }
  torch::Device device() const { return layers_.front().device(); }
  const std::vector<Dictionary>& layers() const { return layers_; }
  const torch::Tensor& b_dec() const { return b_dec_LD_; }
  const torch::Tensor& W_skip() const { return W_skip_LDD_; }
  const DictionaryOrigin& origin() const { return origin_; }
  /// What the features of a layer write, [F, L - layer, D]. Throws std::out_of_range.
  torch::Tensor W_dec(int64_t layer) const;

  /// Hex SHA-256 of all that it computes with.
  std::string hash() const;

  /// Features [L, .., F] of x [L, .., d_in]. Throws ShapeError.
  torch::Tensor encode(const torch::Tensor& x) const;
  /// Those that are not 0, layer by layer, of x [L, N, d_in].
  std::vector<SparseFeatures> encode_sparse(const torch::Tensor& x_LND) const;

  /// y [L, .., D] of features [L, .., F]. x [L, .., d_in]: what they are of, needed with W_skip.
  /// Throws ShapeError, and std::invalid_argument if x is needed and not given.
  torch::Tensor decode(const torch::Tensor& f, const torch::Tensor& x = {}) const;
  torch::Tensor decode(const std::vector<SparseFeatures>& f, const torch::Tensor& x_LND = {}) const;

  /// decode(encode(x)): [L, .., D].
  torch::Tensor forward(const torch::Tensor& x) const;

  CrossLayerTranscoder to(torch::ScalarType dtype) const;
  CrossLayerTranscoder to(torch::Device device) const;
  /// The same function where all that a feature writes, to every layer together, has length 1.
  CrossLayerTranscoder fold_decoder_norm() const;

 private:
  torch::Tensor finish(torch::Tensor y, const torch::Tensor& x) const;

  std::vector<Dictionary> layers_;
  torch::Tensor b_dec_LD_, W_skip_LDD_;
  DictionaryOrigin origin_;
};

}  // namespace introspect::sae

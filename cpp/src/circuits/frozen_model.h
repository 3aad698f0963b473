#pragma once

#include <vector>

#include <torch/types.h>

#include "circuits/decoder.h"
#include "introspect/circuits/attribute.h"
#include "introspect/models/model.h"

namespace introspect::circuits {

/// Tokens int64 [T] on the CPU. Throws ShapeError unless they are whole numbers [T], at least `least` of them, and
/// std::out_of_range for one that is not in the vocabulary; `who` begins the message.
torch::Tensor checked_tokens(const models::Model& model, const torch::Tensor& tokens_T, int64_t least,
                             const char* who);

/// Rows of the unembedding less their mean, [n, D]: what targets that are next tokens are dotted with.
torch::Tensor logit_directions(const models::Model& model, const torch::Tensor& ids);

/// A model on one prompt with its attention patterns and the scales of its norms held fixed: from the stream to the stream
/// it is then affine, MLPs aside, and this has the adjoint of that map.
///
/// Gradients of R rows at P positions are [P, R, D], float32 or, of a float64 model, float64.
class FrozenModel {
 public:
  FrozenModel(const models::Model& model, const torch::Tensor& tokens_T, int64_t memory_for_patterns,
              const std::vector<Injection>& injections = {});

  const models::Model& model() const { return decoder_.model(); }
  int64_t n_layers() const { return decoder_.n_layers(); }
  int64_t n_tokens() const { return embedded_TD_.size(0); }
  bool parallel() const { return decoder_.nodes().parallel; }

  const torch::Tensor& embedded_TD() const { return embedded_TD_; }
  const torch::Tensor& positions_TD() const {
    return positions_TD_;
  }  ///< position embeddings; undefined if there are none
  const torch::Tensor& last_TD() const { return last_TD_; }  ///< the stream after the last block

  /// What is injected into the stream after a layer, [T, D]; undefined for nothing.
  const torch::Tensor& injected_TD(int64_t layer) const { return layers_[size_t(layer)].injected_TD; }

  /// What the MLP of a layer adds to the stream, after its norm.
  const torch::Tensor& mlp_out_TD(int64_t layer) const { return layers_[size_t(layer)].mlp_out_TD; }

  /// What attention adds whatever it reads: its biases, through the fixed pattern and norms.
  const torch::Tensor& attention_bias_TD(int64_t layer) const {
    return layers_[size_t(layer)].attention_bias_TD;
  }

  /// The stream before block `layer`.
  const torch::Tensor& resid_pre_TD(int64_t layer) const { return layers_[size_t(layer)].resid_pre_TD; }

  /// The stream after block `layer`, with what is injected there.
  const torch::Tensor& stream_after_TD(int64_t layer) const {
    return layer + 1 < n_layers() ? resid_pre_TD(layer + 1) : last_TD_;
  }
  /// Bytes of the patterns that are kept.
  int64_t pattern_bytes() const;

  /// What a transcoder reads in a layer, and what of it does not come from the stream: the norm's bias [D] or undefined.
  torch::Tensor mlp_input_TD(int64_t layer, TranscoderInput input) const;
  torch::Tensor mlp_input_bias_D(int64_t layer, TranscoderInput input) const;

  /// The gradient at the stream of g at what a transcoder reads, at positions int64 [R] of rows [R, D] ...
  torch::Tensor mlp_input_gradient(int64_t layer, TranscoderInput input, const torch::Tensor& g_RD,
                                   const torch::Tensor& positions_R) const;
  /// ... or at every position, [P, R, D].
  torch::Tensor mlp_input_gradient(int64_t layer, TranscoderInput input, const torch::Tensor& g_PRD) const;

  /// The gradient [P, R, D] at the stream that attention reads, of g at what it adds to the stream: of every position, or
  /// of the rows' own positions, below `n_positions`.
  torch::Tensor attention_gradient(int64_t layer, const torch::Tensor& g_PRD) const;
  torch::Tensor attention_gradient(int64_t layer, const torch::Tensor& g_RD, const torch::Tensor& positions_R,
                                   int64_t n_positions) const;

  /// What each head, [H, T, D], adds to the stream for a change [T, D] of the stream that it reads.
  torch::Tensor attention_change(int64_t layer, const torch::Tensor& x_TD) const;
  /// What a transcoder reads more for a change [T, D] of the stream.
  torch::Tensor mlp_input_change(int64_t layer, TranscoderInput input, const torch::Tensor& x_TD) const;
  /// What attention wrote, [T, D].
  torch::Tensor attention_out_TD(int64_t layer) const;

  /// The same through the final norm, at positions of rows.
  torch::Tensor final_gradient(const torch::Tensor& g_RD, const torch::Tensor& positions_R) const;
  /// What the final norm adds whatever it reads, [D]; undefined for none.
  torch::Tensor final_bias_D() const;

  /// What each head reads and makes of it, for those who look into scores: [H, T, S].
  torch::Tensor pattern_HTS(int64_t layer) const;
  Decoder::Qkv qkv(int64_t layer) const;  ///< [1, T, H or G, K]
  /// Rows [N, K] of queries or keys of one position, as scores are made of them.
  torch::Tensor rotated(int64_t layer, const torch::Tensor& x_NK, int64_t position) const;
  torch::Tensor ln1_inverse_T1(int64_t layer) const { return layers_[size_t(layer)].ln1_inverse_T1; }
  std::shared_ptr<const nn::Block> block(int64_t layer) const { return model().block(layer); }

 private:
  struct Layer {
    torch::Tensor resid_pre_TD, attention_out_TD, mlp_reads_TD, mlp_out_TD, attention_bias_TD, injected_TD;
    torch::Tensor ln1_inverse_T1, ln1_post_inverse_T1, ln2_inverse_T1;
    torch::Tensor pattern_HTS;  // undefined where it is made again each time
  };
  torch::Tensor make_pattern(int64_t layer, const Decoder::Qkv& qkv) const;
  /// The norm before the MLP, without its weight where a transcoder reads before that.
  nn::Norm mlp_norm(int64_t layer, TranscoderInput input) const;
  /// Of gradients at what heads mix, [.., H, K], summed over a group's heads: at the stream.
  torch::Tensor through_values(int64_t layer, const torch::Tensor& g_PRHK) const;

  Decoder decoder_;
  std::vector<Layer> layers_;
  torch::Tensor embedded_TD_, positions_TD_, last_TD_, final_inverse_T1_;
};

}  // namespace introspect::circuits

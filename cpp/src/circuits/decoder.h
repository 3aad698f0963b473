#pragma once

#include <functional>
#include <memory>
#include <vector>

#include <torch/types.h>

#include "introspect/circuits/nodes.h"
#include "introspect/models/model.h"

namespace introspect::circuits {

/// A model taken apart into its nodes: the computation of Model::forward for prompts of one length, with the inputs and
/// outputs of every node at hand.
///
/// Tensors of several receivers or senders have them in front: [R, B, T, D]. R counts the receivers of attention in a
/// layer: H queries, n keys, n values of Nodes.
class Decoder {
 public:
  /// Throws ConfigError for a model whose blocks live on several devices.
  Decoder(const models::Model& model, const Nodes& nodes, int64_t n_tokens);

  const models::Model& model() const { return model_; }
  const Nodes& nodes() const { return nodes_; }
  int64_t n_layers() const { return nodes_.n_layers; }

  /// What the sender `input` writes, [B, T, D], of tokens [B, T]; and the stream that it makes with position embeddings.
  torch::Tensor embedded(const torch::Tensor& tokens_BT) const;
  torch::Tensor stream_of(const torch::Tensor& embedded_BTD) const;

  /// The block from the stream before it to the stream after it.
  torch::Tensor block(int64_t layer, const torch::Tensor& x_BTD) const;
  torch::Tensor mlp_half(int64_t layer, const torch::Tensor& x_pre_BTD, const torch::Tensor& x_mid_BTD) const;

  /// Queries, keys and values side by side, [B, T, R, K]: of one stream, or of one for each receiver [R, B, T, D].
  torch::Tensor project(int64_t layer, const torch::Tensor& x_BTD) const;
  torch::Tensor project_each(int64_t layer, const torch::Tensor& x_RBTD) const;

  /// The same of the receivers [first, first + n) among R only, [B, T, n, K] of x [B, T, D].
  torch::Tensor project_some(int64_t layer, const torch::Tensor& x_BTD, int64_t first, int64_t n) const;

  /// Queries and keys as scores are made of them, after their norms and rotation, and values, of [B, T, R, K].
  struct Qkv {
    torch::Tensor q_BTHK, k_BTGK, v_BTGK;
  };
  Qkv qkv(int64_t layer, const torch::Tensor& qkv_BTRK) const;

  /// The rotation and the mask of a layer.
  const nn::Positions& positions_at(int64_t layer) const {
    return parts(layer)->parts().attn.options().local ? local_ : global_;
  }

  /// What the heads mix, [B, T, H, K], of [B, T, R, K]. Differentiable.
  torch::Tensor attend(int64_t layer, const torch::Tensor& qkv_BTRK) const;

  /// What attention adds to the stream, [B, T, D], and each head of it [H, B, T, D] (what is missing is the bias).
  torch::Tensor attention_out(int64_t layer, const torch::Tensor& z_BTHK) const;
  struct Heads {
    torch::Tensor out_BTD, each_HBTD;
  };
  Heads heads(int64_t layer, const torch::Tensor& z_BTHK) const;

  /// What the MLP adds to the stream, of the stream it reads.
  torch::Tensor mlp_out(int64_t layer, const torch::Tensor& x_BTD) const;

  /// What every sender writes in a run of these tokens, [senders, B, T, D], and the streams before each block and after
  /// the last.
  struct Run {
    torch::Tensor senders;
    std::vector<torch::Tensor> streams;
  };
  Run run(const torch::Tensor& tokens_BT, bool keep_streams) const;

  /// A run whose gradients can be asked for.
  struct Trace {
    struct Layer {
      torch::Tensor x_attention, x_mlp;  // the streams that attention and the MLP read
      torch::Tensor qkv, hidden;  // [B, T, R, K], and the MLP before its activation, or what a mixture reads
      torch::Tensor attention, mlp;  // what they compute, where a norm follows
    };
    int64_t first_layer = 0;
    std::vector<Layer> layers;  // from first_layer on; what is needed for gradients is computed again
    torch::Tensor last_BTD;     // after the last block
  };

  /// From the stream before a block on. With from_mlp, from between its halves: `x_pre_BTD` is then the stream that a
  /// parallel MLP reads, and x_BTD the stream after attention.
  Trace trace(const torch::Tensor& x_BTD, int64_t first_layer = 0, bool from_mlp = false,
              const torch::Tensor& x_pre_BTD = {}) const;

  /// Calls visit(first, g) with the gradient at the input of receivers `first` to `first` + n, [n, B, T, D], from the
  /// logits down; g_BTD is the gradient at the last stream. Frees the trace on its way.
  void backward(Trace& trace, const torch::Tensor& g_BTD,
                const std::function<void(int64_t first, const torch::Tensor& g_nBTD)>& visit) const;

 private:
  std::shared_ptr<const nn::Block> parts(int64_t layer) const { return model_.block(layer); }

  const models::Model& model_;
  Nodes nodes_;
  nn::Positions global_, local_;
  torch::Tensor positions_embedding_TD_;
};

}  // namespace introspect::circuits

#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/config.h"

namespace introspect::circuits {

/// The nodes of a decoder, and which of them feed which.
///
/// Senders write to the residual stream: `input` (the token embedding), the heads `a{layer}.h{head}` and the MLPs
/// `m{layer}`. Receivers read it: queries, keys and values `a{layer}.h{head}<q|k|v>`, MLPs and `logits`. An edge is a
/// sender and a receiver after it, `a0.h0->a1.h2<k>`. In parallel blocks a layer's heads do not feed its MLP.
///
/// With grouped keys a receiver of keys or values is a group: `a1.g0<k>`. Ungrouped, each query head has a key and a value
/// input of its own, as EAP-IG asks of TransformerLens; those of a group then share their matrices. What belongs to no
/// node (position embeddings, biases) is part of the stream and never replaced. A sender's output is what it adds to the
/// stream: after its norm where a family norms what is written (Gemma 2 and 3), with the norm's scale of the same run.
///
/// Source: Hanna et al. 2024, arXiv:2403.17806, and the names of its EAP-IG package.
struct INTROSPECT_EXPORT Nodes {
  int64_t n_layers = 0, n_heads = 0;
  int64_t n_groups = 0;  ///< receivers of keys, and as many of values, in each layer
  int64_t d_model = 0;
  bool parallel = false;

  /// Those of a model.
  static Nodes of(const models::Config& cfg, bool ungrouped = false);

  int64_t n_senders() const { return 1 + n_layers * (n_heads + 1); }
  int64_t n_receivers() const { return n_layers * n_readers() + 1; }
  int64_t n_edges() const;

  int64_t head(int64_t layer, int64_t head) const { return 1 + layer * (n_heads + 1) + head; }
  int64_t mlp(int64_t layer) const { return head(layer, n_heads); }

  /// Receivers of a layer: its queries, keys, values and, last, its MLP.
  int64_t n_readers() const { return n_heads + 2 * n_groups + 1; }
  int64_t first_reader(int64_t layer) const { return layer * n_readers(); }
  int64_t mlp_reader(int64_t layer) const { return first_reader(layer) + n_readers() - 1; }
  int64_t logits() const { return n_receivers() - 1; }

  /// The layer of a receiver; n_layers for the logits.
  int64_t layer_of(int64_t receiver) const { return receiver / n_readers(); }

  /// The senders that a receiver is an input of, [first, first + n): a head, a group's heads, an MLP; n = 0 for the logits.
  struct Fed {
    int64_t first = 0, n = 0;
  };
  Fed fed_by(int64_t receiver) const;

  /// How many senders come before a receiver: those of smaller numbers feed it.
  int64_t n_before(int64_t receiver) const;

  /// True for every sender and receiver that are an edge: bool [senders, receivers].
  torch::Tensor edges() const;

  std::string sender_name(int64_t sender) const;
  std::string receiver_name(int64_t receiver) const;
  std::string edge_name(int64_t sender, int64_t receiver) const;

  /// The sender and receiver of an edge's name; `a1.h2<k>` is the group of head 2 where keys are grouped.
  ///
  /// Throws std::invalid_argument for what is no edge of this model, saying what is wrong with it.
  std::pair<int64_t, int64_t> parse_edge(const std::string& name) const;

  /// The sender of a name; n_senders() for "logits". Throws as parse_edge.
  int64_t parse_node(const std::string& name) const;

  bool operator==(const Nodes&) const = default;
};

}  // namespace introspect::circuits

#pragma once

#include <optional>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/attention.h"
#include "introspect/nn/mlp.h"
#include "introspect/nn/norm.h"

namespace introspect::nn {

/// The parts of a decoder block.
struct BlockParts {
  Norm ln1;
  Attention attn;
  std::optional<Norm> ln1_post;  // of what attention writes: Gemma 2 and 3, OLMo 2 and 3
  Norm ln2;
  Mlp mlp;
  std::optional<Norm> ln2_post;  // of what the MLP writes
  bool parallel = false;         // the MLP reads the residual before attention: GPT-NeoX
};

/// One decoder block.
class INTROSPECT_EXPORT Block {
 public:
  explicit Block(BlockParts parts);

  /// The residual stream before the block -> after it, both [B, T, D]; ctx.layer is this block's number.
  torch::Tensor forward(const torch::Tensor& resid_pre_BTD, const Context& ctx) const;

  const BlockParts& parts() const { return parts_; }

 private:
  AttentionInput attention_input(const torch::Tensor& x_BTD, const Context& ctx) const;

  BlockParts parts_;
};

}  // namespace introspect::nn

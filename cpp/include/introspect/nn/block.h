#pragma once

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/attention.h"
#include "introspect/nn/gated_mlp.h"
#include "introspect/nn/rms_norm.h"

namespace introspect::nn {

/// One pre-norm decoder block.
class INTROSPECT_EXPORT Block {
 public:
  Block(RmsNorm ln1, Attention attn, RmsNorm ln2, GatedMlp mlp);

  /// The residual stream before the block -> after it, both [B, T, D]; ctx.layer is this block's number.
  torch::Tensor forward(const torch::Tensor& resid_pre_BTD, const Context& ctx) const;

  const Attention& attn() const { return attn_; }
  const GatedMlp& mlp() const { return mlp_; }
  const RmsNorm& ln1() const { return ln1_; }
  const RmsNorm& ln2() const { return ln2_; }

 private:
  RmsNorm ln1_;
  Attention attn_;
  RmsNorm ln2_;
  GatedMlp mlp_;
};

}  // namespace introspect::nn

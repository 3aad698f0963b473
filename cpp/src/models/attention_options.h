#pragma once

#include "introspect/models/config.h"
#include "introspect/nn/attention.h"

namespace introspect::models {

/// What a layer's attention takes from the config; norms of queries and keys are weights, and added by who has them.
inline nn::AttentionOptions attention_options(const Config& cfg, int64_t layer) {
  nn::AttentionOptions attn;
  attn.n_heads = cfg.n_heads;
  attn.n_key_value_heads = cfg.n_key_value_heads;
  attn.d_head = cfg.d_head;
  attn.scale = cfg.attn_scale;
  attn.soft_cap = cfg.attn_scores_soft_cap;
  attn.local = cfg.is_local(layer);
  return attn;
}

}  // namespace introspect::models

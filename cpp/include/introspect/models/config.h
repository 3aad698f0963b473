#pragma once

#include <cstdint>
#include <string>

#include "introspect/export.h"
#include "introspect/ops/rotary.h"

namespace introspect::models {

/// What a decoder is made of. Families differ in the values of these fields, never in the code of the forward pass.
struct Config {
  std::string model_name;
  std::string original_architecture;  // "Qwen2ForCausalLM", "LlamaForCausalLM"

  int64_t n_layers = 0;
  int64_t d_model = 0;
  int64_t n_heads = 0;
  int64_t n_key_value_heads = 0;
  int64_t d_head = 0;
  int64_t d_mlp = 0;
  int64_t d_vocab = 0;
  int64_t n_ctx = 0;  // longest sequence, in tokens

  std::string act_fn = "silu";
  double eps = 1e-6;
  double rotary_base = 10000.0;
  ops::RotaryScaling rotary_scaling;  // Llama 3.1 and later: "llama3"

  bool qkv_bias = false;             // Qwen2 adds a bias to queries, keys and values
  bool attn_out_bias = false;        // Llama with attention_bias adds one after W_O too
  bool mlp_bias = false;             // Llama with mlp_bias
  bool tie_word_embeddings = false;  // the unembedding is the embedding

  /// Throws ConfigError, naming the field, unless every size is positive and the heads divide as they must.
  INTROSPECT_EXPORT void validate() const;
};

}  // namespace introspect::models

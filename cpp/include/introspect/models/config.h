#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "introspect/export.h"
#include "introspect/hooks/hook_point.h"
#include "introspect/ops/rotary.h"

namespace introspect::models {

/// Sizes of a model are below this, so that the size of every tensor fits in 64 bits.
inline constexpr int64_t kLargestSize = int64_t{1} << 31;

/// What a decoder is made of. Families differ in the values of these fields, never in the code of the forward pass.
struct Config {
  std::string model_name;
  std::string original_architecture;  // "Qwen2ForCausalLM", "LlamaForCausalLM", as config.json has it

  int64_t n_layers = 0;
  int64_t d_model = 0;
  int64_t n_heads = 0;
  int64_t n_key_value_heads = 0;
  int64_t d_head = 0;
  int64_t d_mlp = 0;
  int64_t d_vocab = 0;
  int64_t n_ctx = 0;  // longest sequence, in tokens

  std::string act_fn = "silu";  // or "gelu" (exact) or "gelu_new" (tanh): GPT-2, GPT-NeoX, Gemma
                                // or "swiglu_clamped": gpt-oss (ops/activation.h)
  bool gated_mlp = true;        // GPT-2 and GPT-NeoX have two matrices and no gate

  int64_t num_experts = 0;        // Mixtral, Qwen3-MoE and gpt-oss have so many MLPs of width d_mlp; 0: one
  int64_t experts_per_token = 0;  // those that a router chooses for each token
  bool norm_topk_prob = false;    // the weights of the chosen sum to one: Mixtral, gpt-oss, most Qwen3-MoE
  bool router_bias = false;       // gpt-oss

  std::string normalization_type = "RMS";  // "LN": GPT-2 and GPT-NeoX subtract the mean and add a bias
  double eps = 1e-6;
  bool norm_weight_offset = false;  // Gemma multiplies by 1 + weight, in float32, before it rounds
  bool norm_rounds_last = false;    // OLMo 2 and 3 and gpt-oss: times the weight in float32, before it rounds
  bool use_normalization_before_and_after = false;  // Gemma 2 and 3 norm what a layer writes, too
  bool use_normalization_after_only = false;  // OLMo 2 and 3 norm what a layer writes, not what it reads
  bool use_qk_norm = false;                   // Qwen3 and Gemma 3 norm each query and key head
  bool qk_norm_over_heads = false;            // OLMo 2 and 3 norm all heads of a token as one vector

  std::string positional_embedding_type = "rotary";  // "standard": GPT-2 adds a learned vector per position
  int64_t rotary_dim = 0;  // dimensions of a head that are rotated; GPT-NeoX rotates the first quarter
  double rotary_base = 10000.0;
  double rotary_base_local = 0;       // of the layers with a window, where it differs: Gemma 3
  ops::RotaryScaling rotary_scaling;  // Llama 3.1: "llama3", gpt-oss: "yarn"; of the layers without a window
  bool rotary_in_float32 = false;     // OLMo 2 and 3 rotate in float32 and round once

  int64_t window_size = 0;  // keys a "local" layer sees, its own included: Mistral, Gemma 2 and 3, Phi-3
  std::vector<std::string> attn_types;  // per layer "global" or "local"; empty: all global

  bool attn_sinks = false;            // gpt-oss: a score of each head's own that takes attention to no key
  double attn_scale = 0;              // scores are divided by it: sqrt(d_head), but for some Gemmas
  double attn_scores_soft_cap = 0;    // c * tanh(scores / c): Gemma 2; 0: none
  double output_logits_soft_cap = 0;  // likewise on the logits
  double embed_scale = 1;             // the embedding is multiplied by it: sqrt(d_model) in Gemma

  bool parallel_attn_mlp = false;    // GPT-NeoX: attention and MLP both read the residual before the block
  bool qkv_bias = false;             // Qwen2, GPT-2 and GPT-NeoX add a bias to queries, keys and values
  bool attn_out_bias = false;        // GPT-2, GPT-NeoX, and Llama with attention_bias, add one after W_O too
  bool mlp_bias = false;             // GPT-2, GPT-NeoX, and Llama with mlp_bias
  bool tie_word_embeddings = false;  // the unembedding is the embedding

  /// Ids that end a generation: eos_token_id of generation_config.json or, where it has none, of config.json.
  std::vector<int64_t> eos_token_ids;

  /// True if a layer sees the last window_size keys only.
  bool is_local(int64_t layer) const {
    return !attn_types.empty() && attn_types[static_cast<size_t>(layer)] == "local";
  }

  bool is_mixture() const { return num_experts > 0; }
  bool norms_input() const { return !use_normalization_after_only; }
  bool norms_output() const { return use_normalization_before_and_after || use_normalization_after_only; }

  /// Throws ConfigError, naming the field, unless every size is positive, the heads divide as they must and the
  /// options are among those named above.
  INTROSPECT_EXPORT void validate() const;
};

/// The hook points of a model with this config.
INTROSPECT_EXPORT hooks::HookPoints hook_points(const Config& cfg);

/// config.json's model_type, which repeng writes as a vector's model hint: "Qwen2ForCausalLM" -> "qwen2".
INTROSPECT_EXPORT std::string model_type(const Config& cfg);

}  // namespace introspect::models

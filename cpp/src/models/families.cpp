#include "models/architecture.h"

namespace introspect::models {

namespace {

/// The names that Llama began and most families kept.
WeightMap llama_names() {
  WeightMap m;
  m.prefixes = {"model."};
  m.embed = "embed_tokens";
  m.ln_final = "norm";
  m.unembed = {"lm_head"};
  m.ln1 = "layers.{}.input_layernorm";
  m.q = "layers.{}.self_attn.q_proj";
  m.k = "layers.{}.self_attn.k_proj";
  m.v = "layers.{}.self_attn.v_proj";
  m.o = "layers.{}.self_attn.o_proj";
  m.ln2 = "layers.{}.post_attention_layernorm";
  m.gate = "layers.{}.mlp.gate_proj";
  m.in = "layers.{}.mlp.up_proj";
  m.out = "layers.{}.mlp.down_proj";
  return m;
}

WeightMap gguf_names() {
  WeightMap m;
  m.embed = "token_embd";
  m.ln_final = "output_norm";
  m.unembed = {"output"};
  m.ln1 = "blk.{}.attn_norm";
  m.q = "blk.{}.attn_q";
  m.k = "blk.{}.attn_k";
  m.v = "blk.{}.attn_v";
  m.o = "blk.{}.attn_output";
  m.ln2 = "blk.{}.ffn_norm";
  m.gate = "blk.{}.ffn_gate";
  m.in = "blk.{}.ffn_up";
  m.out = "blk.{}.ffn_down";
  return m;
}

/// One tensor for queries, keys and values.
WeightMap with_fused_qkv(WeightMap m, const char* qkv) {
  m.q.clear(), m.k.clear(), m.v.clear();
  m.qkv = qkv;
  return m;
}

WeightMap without_gate(WeightMap m) {
  m.gate.clear();
  return m;
}

Family qwen2() {
  Family f{.hf = "Qwen2ForCausalLM", .model_type = "qwen2", .gguf = "qwen2"};
  f.common.qkv_bias = true;
  f.hf_names = llama_names();
  f.hf_defaults = R"({"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": null,
    "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    "rope_theta": 10000.0, "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28,
    "layer_types": null})";
  f.gguf_names = gguf_names();
  return f;
}

Family qwen3() {
  Family f{.hf = "Qwen3ForCausalLM", .model_type = "qwen3", .gguf = "qwen3"};
  f.common.use_qk_norm = true;
  f.hf_names = llama_names();
  f.hf_defaults = R"({"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128,
    "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    "attention_bias": false, "rope_theta": 10000.0, "use_sliding_window": false, "sliding_window": 4096,
    "max_window_layers": 28, "layer_types": null})";
  f.hf_names.q_norm = "layers.{}.self_attn.q_norm";
  f.hf_names.k_norm = "layers.{}.self_attn.k_norm";
  f.gguf_names = gguf_names();
  f.gguf_names.q_norm = "blk.{}.attn_q_norm";
  f.gguf_names.k_norm = "blk.{}.attn_k_norm";
  return f;
}

/// Qwen3-MoE's experts and, in transformers 5's memory, Mixtral's: all of a layer in one tensor.
ExpertNames stacked_experts() {
  return {.router = "layers.{}.mlp.gate",
          .out = "layers.{}.mlp.experts.down_proj",
          .gate_in = "layers.{}.mlp.experts.gate_up_proj",
          .weight_suffix = "",
          .bias_suffix = "_bias"};
}

std::vector<ExpertNames> gguf_experts() {
  return {{.router = "blk.{}.ffn_gate_inp",
           .gate = "blk.{}.ffn_gate_exps",
           .in = "blk.{}.ffn_up_exps",
           .out = "blk.{}.ffn_down_exps"},
          {.router = "blk.{}.ffn_gate_inp",  // files of 2023 and early 2024
           .gate = "blk.{}.ffn_gate.{e}",
           .in = "blk.{}.ffn_up.{e}",
           .out = "blk.{}.ffn_down.{e}"}};
}

Family qwen3_moe() {
  Family f = qwen3();
  f.hf = "Qwen3MoeForCausalLM";
  f.model_type = "qwen3_moe";
  f.hf_defaults = R"({"vocab_size": 151936, "hidden_size": 2048, "moe_intermediate_size": 768,
    "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": null,
    "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    "attention_bias": false, "rope_theta": 10000.0, "use_sliding_window": false, "sliding_window": 4096,
    "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": false, "decoder_sparse_step": 1,
    "mlp_only_layers": null})";
  f.gguf = "qwen3moe";
  f.common.num_experts = 128;
  f.common.experts_per_token = 8;
  f.common.norm_topk_prob = true;
  f.hf_window_period = 1;
  f.hf_names.experts = {{.router = "layers.{}.mlp.gate",
                         .gate = "layers.{}.mlp.experts.{e}.gate_proj",
                         .in = "layers.{}.mlp.experts.{e}.up_proj",
                         .out = "layers.{}.mlp.experts.{e}.down_proj"},
                        stacked_experts()};
  f.gguf_names.experts = gguf_experts();
  return f;
}

/// Norms after the layers, of queries and keys over all heads, and a rotation in float32.
Family olmo2() {
  Family f{.hf = "Olmo2ForCausalLM", .model_type = "olmo2", .gguf = "olmo2"};
  f.hf_defaults = R"({"vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": null, "head_dim": null,
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    "attention_bias": false, "rope_theta": 10000.0})";
  f.common.norm_rounds_last = true;
  f.common.use_normalization_after_only = true;
  f.common.use_qk_norm = f.common.qk_norm_over_heads = true;
  f.common.rotary_in_float32 = true;
  f.hf_names = llama_names();
  f.hf_names.ln1.clear(), f.hf_names.ln2.clear();
  f.hf_names.ln1_post = "layers.{}.post_attention_layernorm";
  f.hf_names.ln2_post = "layers.{}.post_feedforward_layernorm";
  f.hf_names.q_norm = "layers.{}.self_attn.q_norm";
  f.hf_names.k_norm = "layers.{}.self_attn.k_norm";
  f.gguf_names = gguf_names();
  f.gguf_names.ln1.clear(), f.gguf_names.ln2.clear();
  f.gguf_names.ln1_post = "blk.{}.post_attention_norm";
  f.gguf_names.ln2_post = "blk.{}.post_ffw_norm";
  f.gguf_names.q_norm = "blk.{}.attn_q_norm";
  f.gguf_names.k_norm = "blk.{}.attn_k_norm";
  f.gguf_window_period = 4;  // a file that gives a window is OLMo 3's
  return f;
}

Family olmo3() {
  Family f = olmo2();  // and in GGUF it says it is one
  f.hf = "Olmo3ForCausalLM";
  f.model_type = "olmo3";
  f.hf_defaults = R"({"vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": null, "head_dim": null,
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    "attention_bias": false, "rope_theta": 500000.0, "sliding_window": 4096, "layer_types": null})";
  f.hf_window_period = 4;
  f.layers_have_own_ropes = true;
  return f;
}

/// Attention sinks, biases everywhere, and experts with a clamped gate.
Family gpt_oss() {
  Family f{.hf = "GptOssForCausalLM", .model_type = "gpt_oss", .gguf = "gpt-oss"};
  f.hf_defaults = R"({"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
    "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "attention_bias": true,
    "rope_theta": 150000.0, "sliding_window": 128, "layer_types": null, "num_local_experts": 128,
    "num_experts_per_tok": 4, "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "rope_parameters": {"rope_type": "yarn",
    "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
    "original_max_position_embeddings": 4096}})";
  f.common.act_fn = "swiglu_clamped";
  f.common.num_experts = 128;
  f.common.experts_per_token = 4;
  f.common.norm_topk_prob = true;
  f.common.router_bias = f.common.mlp_bias = f.common.qkv_bias = f.common.attn_out_bias = true;
  f.common.norm_rounds_last = true;
  f.common.attn_sinks = true;
  f.common.rotary_scaling.truncate = false;
  f.hf_window_period = f.gguf_window_period = 2;
  f.hf_names = llama_names();
  f.hf_names.sinks = "layers.{}.self_attn.sinks";
  f.hf_names.experts = {stacked_experts()};
  f.hf_names.experts.front().router = "layers.{}.mlp.router";
  f.hf_names.experts.front().transposed = f.hf_names.experts.front().interleaved = true;
  f.gguf_names = gguf_names();
  f.gguf_names.ln2 = "blk.{}.post_attention_norm";
  f.gguf_names.sinks = "blk.{}.attn_sinks.weight";
  f.gguf_names.experts = gguf_experts();
  return f;
}

Family llama() {
  Family f{.hf = "LlamaForCausalLM", .model_type = "llama", .gguf = "llama"};
  f.hf_defaults = R"({"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": null, "head_dim": null,
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    "attention_bias": false, "mlp_bias": false, "rope_theta": 10000.0})";
  f.hf_names = llama_names();
  f.gguf_window_period = 1;
  f.gguf_names = gguf_names();
  f.gguf_names.interleaved_rotary = true;
  f.gguf_names.rotary_factors = "rope_freqs.weight";
  return f;
}

Family mistral() {
  Family f = llama();  // and in GGUF it says it is one
  f.hf = "MistralForCausalLM";
  f.model_type = "mistral";
  f.hf_defaults = R"({"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": null,
    "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    "rope_theta": 10000.0, "sliding_window": 4096})";
  f.hf_window_period = 1;
  return f;
}

Family mixtral() {
  Family f = llama();  // and in GGUF it says it is one
  f.hf = "MixtralForCausalLM";
  f.model_type = "mixtral";
  f.hf_defaults = R"({"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": null,
    "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    "rope_theta": 1e6, "sliding_window": null, "num_local_experts": 8, "num_experts_per_tok": 2})";
  f.common.num_experts = 8;
  f.common.experts_per_token = 2;
  f.common.norm_topk_prob = true;
  f.hf_window_period = 1;
  f.hf_names.experts = {{.router = "layers.{}.block_sparse_moe.gate",
                         .gate = "layers.{}.block_sparse_moe.experts.{e}.w1",
                         .in = "layers.{}.block_sparse_moe.experts.{e}.w3",
                         .out = "layers.{}.block_sparse_moe.experts.{e}.w2"},
                        stacked_experts()};
  f.gguf_names.experts = gguf_experts();
  return f;
}

Family gemma2() {
  Family f{.hf = "Gemma2ForCausalLM", .model_type = "gemma2", .gguf = "gemma2"};
  f.hf_defaults = R"({"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": true, "attention_bias": false, "rope_theta": 10000.0, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "layer_types": null, "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0})";
  f.common.act_fn = "gelu_new";
  f.common.norm_weight_offset = true;
  f.common.use_normalization_before_and_after = true;
  f.common.attn_scores_soft_cap = 50;
  f.common.output_logits_soft_cap = 30;
  f.common.tie_word_embeddings = true;
  f.hf_window_period = f.gguf_window_period = 2;
  f.gguf_windows = {{.window = 4096}};
  f.embed_scaled_by_width = true;
  f.layers_scaled_by_width = 46;
  f.hf_names = llama_names();
  f.hf_names.ln1_post = "layers.{}.post_attention_layernorm";
  f.hf_names.ln2 = "layers.{}.pre_feedforward_layernorm";
  f.hf_names.ln2_post = "layers.{}.post_feedforward_layernorm";
  f.gguf_names = gguf_names();
  f.gguf_names.ln1_post = "blk.{}.post_attention_norm";
  f.gguf_names.ln2_post = "blk.{}.post_ffw_norm";
  f.gguf_names.norms_hold_one_plus = true;
  return f;
}

Family gemma3() {
  Family f = gemma2();
  f.hf = "Gemma3ForCausalLM";
  f.model_type = "gemma3_text";
  f.hf_defaults = R"({"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": true, "attention_bias": false, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 6, "layer_types": null,
    "final_logit_softcapping": null, "attn_logit_softcapping": null})";
  f.gguf = "gemma3";
  f.common.attn_scores_soft_cap = 0;
  f.common.output_logits_soft_cap = 0;
  f.common.use_qk_norm = true;
  f.common.rotary_base = 1e6;
  f.common.rotary_base_local = 1e4;
  f.hf_window_period = f.gguf_window_period = 6;
  f.gguf_windows = {};
  f.layers_scaled_by_width = 62;
  f.hf_names.q_norm = "layers.{}.self_attn.q_norm";
  f.hf_names.k_norm = "layers.{}.self_attn.k_norm";
  f.gguf_names.q_norm = "blk.{}.attn_q_norm";
  f.gguf_names.k_norm = "blk.{}.attn_k_norm";
  return f;
}

/// The text model of a Gemma 3 that sees images too.
Family gemma3_multimodal() {
  Family f = gemma3();
  f.hf = "Gemma3ForConditionalGeneration";
  f.model_type = "gemma3";
  f.hf_names.prefixes = {"model.language_model.", "language_model.model."};
  f.hf_names.unembed = {"lm_head", "language_model.lm_head"};
  return f;
}

/// Norms with a mean and a bias, and biases everywhere.
Config gpt_config() {
  Config c;
  c.normalization_type = "LN";
  c.eps = 1e-5;
  c.gated_mlp = false;
  c.qkv_bias = c.attn_out_bias = c.mlp_bias = true;
  return c;
}

Family gpt2() {
  Family f{.hf = "GPT2LMHeadModel", .model_type = "gpt2", .gguf = "gpt2", .common = gpt_config()};
  f.hf_defaults = R"({"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
    "n_inner": null, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": true,
    "tie_word_embeddings": true})";
  f.common.act_fn = "gelu_new";
  f.common.positional_embedding_type = "standard";
  f.common.tie_word_embeddings = true;
  WeightMap& m = f.hf_names;
  m.prefixes = {"transformer.", ""};
  m.embed = "wte";
  m.pos_embed = "wpe";
  m.ln_final = "ln_f";
  m.unembed = {"lm_head"};
  m.ln1 = "h.{}.ln_1";
  m.qkv = "h.{}.attn.c_attn";
  m.o = "h.{}.attn.c_proj";
  m.ln2 = "h.{}.ln_2";
  m.in = "h.{}.mlp.c_fc";
  m.out = "h.{}.mlp.c_proj";
  m.transposed = true;
  f.gguf_names = without_gate(with_fused_qkv(gguf_names(), "blk.{}.attn_qkv"));
  f.gguf_names.pos_embed = "position_embd";
  return f;
}

Family gpt_neox() {
  Family f{.hf = "GPTNeoXForCausalLM", .model_type = "gpt_neox", .gguf = "gptneox", .common = gpt_config()};
  f.hf_defaults = R"({"vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44,
    "num_attention_heads": 64, "intermediate_size": 24576, "hidden_act": "gelu", "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5, "tie_word_embeddings": false, "use_parallel_residual": true, "attention_bias": true,
    "rotary_emb_base": 10000.0, "rotary_pct": 0.25})";
  f.common.act_fn = "gelu";
  f.common.parallel_attn_mlp = true;
  WeightMap& m = f.hf_names;
  m.prefixes = {"gpt_neox."};
  m.embed = "embed_in";
  m.ln_final = "final_layer_norm";
  m.unembed = {"embed_out", "lm_head"};  // transformers 4 and 5
  m.ln1 = "layers.{}.input_layernorm";
  m.qkv = "layers.{}.attention.query_key_value";
  m.o = "layers.{}.attention.dense";
  m.ln2 = "layers.{}.post_attention_layernorm";
  m.in = "layers.{}.mlp.dense_h_to_4h";
  m.out = "layers.{}.mlp.dense_4h_to_h";
  m.qkv_by_head = true;
  f.gguf_names = without_gate(with_fused_qkv(gguf_names(), "blk.{}.attn_qkv"));
  return f;
}

Family phi3() {
  Family f{.hf = "Phi3ForCausalLM", .model_type = "phi3", .gguf = "phi3"};
  f.hf_defaults = R"({"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": null, "head_dim": null,
    "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "sliding_window": null,
    "original_max_position_embeddings": 4096})";
  f.hf_window_period = f.gguf_window_period = 1;
  f.hf_names = with_fused_qkv(llama_names(), "layers.{}.self_attn.qkv_proj");
  f.hf_names.gate.clear(), f.hf_names.in.clear();
  f.hf_names.gate_in = "layers.{}.mlp.gate_up_proj";
  f.gguf_names = with_fused_qkv(gguf_names(), "blk.{}.attn_qkv");
  f.gguf_names.gate.clear(), f.gguf_names.in.clear();
  f.gguf_names.gate_in = "blk.{}.ffn_up";
  // Phi-3-mini and -medium of 4k and of 128k tokens: https://github.com/ggml-org/llama.cpp/pull/8931
  f.gguf_windows = {{.n_layers = 32, .n_ctx = 4096, .window = 2047},
                    {.n_layers = 40, .n_ctx = 4096, .window = 2047},
                    {.n_layers = 32, .n_key_value_heads = 32, .n_ctx = 131072, .window = 262144},
                    {.n_layers = 40, .n_ctx = 131072, .window = 131072}};
  return f;
}

}  // namespace

const std::vector<Family>& families() {
  // The first of several with one name in a format is the one that name stands for.
  static const std::vector<Family> all = {
      qwen2(), qwen3(), llama(), mistral(), gemma2(),    gemma3(), gemma3_multimodal(), gpt2(), gpt_neox(),
      phi3(),  olmo2(), olmo3(), mixtral(), qwen3_moe(), gpt_oss()};
  return all;
}

}  // namespace introspect::models

"""Tiny random models, written as Hugging Face folders, for tests that need no real weights.

`write_tiny` writes a plain Qwen2 or Llama. `tiny_transformers` makes a transformers model of any architecture this
library reads, with the options of its family that change the numbers switched on; `write_tiny_transformers` writes it.
"""

import functools
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def write_tiny(folder: Path, architecture: str = "Qwen2ForCausalLM", seed: int = 0, **overrides) -> Path:
    """Write config.json and model.safetensors of a random model; weights of order one give attention a shape."""
    config = {**CONFIG, "architectures": [architecture], **overrides}
    d, m, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    d_head = config.get("head_dim") or d // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * d_head, config["num_key_value_heads"] * d_head
    rng = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64) * 1.5 / shape[-1] ** 0.5

    state = {"model.embed_tokens.weight": weight(v, d) * d**0.5, "model.norm.weight": weight(d) + 1}
    if not config["tie_word_embeddings"]:
        state["lm_head.weight"] = weight(v, d) * 3
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        state |= {
            p + "input_layernorm.weight": weight(d) + 1,
            p + "post_attention_layernorm.weight": weight(d) + 1,
            p + "self_attn.q_proj.weight": weight(q, d) * 2,
            p + "self_attn.k_proj.weight": weight(kv, d) * 2,
            p + "self_attn.v_proj.weight": weight(kv, d),
            p + "self_attn.o_proj.weight": weight(d, q),
            p + "mlp.gate_proj.weight": weight(m, d),
            p + "mlp.up_proj.weight": weight(m, d),
            p + "mlp.down_proj.weight": weight(d, m),
        }
        if architecture == "Qwen2ForCausalLM":
            state |= {p + f"self_attn.{n}_proj.bias": weight(s) for n, s in (("q", q), ("k", kv), ("v", kv))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    return folder


# Sizes that tell one axis from another, three query heads for a key head, and an embedding scale that float32 rounds.
SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WIDE = {**SIZES, "head_dim": 10}
WINDOW = 7  # keys; shorter than any text worth testing
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
ROPE_BASES = {  # Gemma 3's, far enough apart to show within a short text
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
EXPERTS = {"num_experts_per_tok": 2, "sliding_window": WINDOW}
NEOX = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
GPT2 = {
    "vocab_size": 101, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 6, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

# name: (transformers' class without "ForCausalLM" or "LMHeadModel", its config's arguments)
ARCHITECTURES = {
    "qwen2": ("Qwen2", SIZES),
    "qwen2 windows": (
        "Qwen2",
        {**SIZES, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1,
         "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3", WIDE),
    "qwen3 biases": ("Qwen3", {**WIDE, "attention_bias": True, "tie_word_embeddings": True}),
    "llama": ("Llama", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    "llama llama3 rope": ("Llama", {**SIZES, "rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama linear rope": ("Llama", {**SIZES, "rope_parameters": LINEAR_ROPE, "num_key_value_heads": 6}),
    "mistral": ("Mistral", {**WIDE, "sliding_window": WINDOW}),
    "mistral no window": ("Mistral", {**WIDE, "sliding_window": None, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2",
        {**WIDE, "sliding_window": WINDOW, "query_pre_attn_scalar": 7, "attn_logit_softcapping": 5.0,
         "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3",
        {**WIDE, "num_hidden_layers": 7, "sliding_window": WINDOW, "query_pre_attn_scalar": 7,
         "rope_parameters": ROPE_BASES},
    ),
    "gemma3 layer types": (
        "Gemma3",
        {**WIDE, "sliding_window": WINDOW, "final_logit_softcapping": 3.0, "tie_word_embeddings": False,
         "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2 n_inner": ("GPT2", {**GPT2, "n_inner": 52, "scale_attn_weights": False}),
    "gpt_neox": ("GPTNeoX", {**NEOX, "rotary_pct": 0.5}),
    "gpt_neox sequential": (
        "GPTNeoX", {**NEOX, "rotary_pct": 1.0, "rotary_emb_base": 100, "use_parallel_residual": False},
    ),
    "phi3": ("Phi3", {**SIZES, "partial_rotary_factor": 0.5, "sliding_window": WINDOW}),
    "phi3 no window": ("Phi3", {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
    "olmo2": ("Olmo2", {**SIZES, "attention_bias": True, "tie_word_embeddings": True}),
    "olmo3": (
        "Olmo3",
        {**SIZES, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "rope_parameters": {"full_attention": YARN_ROPE,
                             "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}},
    ),
    "mixtral": ("Mixtral", {**WIDE, **EXPERTS, "num_local_experts": 5}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**WIDE, "num_experts_per_tok": 3, "num_experts": 6, "moe_intermediate_size": 14, "norm_topk_prob": False,
         "attention_bias": True, "tie_word_embeddings": True},
    ),
    "gpt_oss": (
        "GptOss",
        {**WIDE, **EXPERTS, "num_local_experts": 4, "rope_parameters": {**YARN_ROPE, "truncate": False}},
    ),
}  # fmt: skip


MIXTURES = tuple(name for name, (_, arguments) in ARCHITECTURES.items() if "num_experts_per_tok" in arguments)


def tiny_transformers(name: str, seed: int = 0, **overrides) -> torch.nn.Module:
    """A transformers model of ARCHITECTURES in float64 with eager attention and every parameter random.

    Weights are of order one per output, norms' weights and biases included, so that a forgotten one shows.
    """
    import transformers

    family, arguments = ARCHITECTURES[name]
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else family + "Config")
    model_class = getattr(transformers, family + ("LMHeadModel" if family == "GPT2" else "ForCausalLM"))
    config = config_class(**{**arguments, **overrides})
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = model_class(config).double().eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                scale = 0.4
            elif "embed" in key or "wte" in key or "wpe" in key:
                scale = 1.0
            elif "experts" in key or "router" in key or "mlp.gate.weight" in key:  # gpt-oss's gates reach their limit
                scale = (4.0 if family == "GptOss" else 1.5) / config.hidden_size**0.5
            else:
                scale = 1.5 / min(parameter.shape) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * scale)
            if "norm" in key or "ln_" in key:
                parameter.add_(0.0 if family.startswith("Gemma") or key.endswith("bias") else 1.0)
    return model


def write_tiny_transformers(folder: Path, name: str, seed: int = 0, **overrides) -> Path:
    """Write `tiny_transformers` as transformers does, in float64."""
    tiny_transformers(name, seed, **overrides).save_pretrained(folder)
    return folder


def tiny_loader(folder: Path):
    """A function of an architecture's name: its tiny model in float64, written to the folder and loaded once."""
    import introspect

    @functools.cache
    def load(name: str):
        path = write_tiny_transformers(folder / name.replace(" ", "_"), name)
        return introspect.load_model(path, dtype="float64")

    return load

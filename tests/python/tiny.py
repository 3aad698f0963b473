"""Tiny random models, written as Hugging Face folders, for tests that need no real weights."""

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

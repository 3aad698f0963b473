"""transformers models with the weights of a GGUF file, dequantised by the gguf package: it shares no code with us."""

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name: str) -> str:
    if not name.startswith("blk."):
        stem, _, kind = name.rpartition(".")
        return f"{MODEL_NAMES[stem]}.{kind}"
    _, layer, stem, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[stem]}.{kind}"


def transformers_model(path: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The model of a llama or qwen2 GGUF file, with its own output.weight where it has one."""
    reader = GGUFReader(path)

    def field(key: str):
        return reader.fields[f"{architecture}.{key}"].contents()

    architecture = reader.fields["general.architecture"].contents()
    config_class, model_class = CLASSES[architecture]
    tensors = {t.name: t for t in reader.tensors}
    config = config_class(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_theta=field("rope.freq_base"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings="output.weight" not in tensors,
    )
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for name, tensor in tensors.items():
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = name.split(".")[2] if name.startswith("blk.") else ""
        if architecture == "llama" and part in heads:  # llama.cpp interleaves the two halves of each head
            values = values.reshape(heads[part], -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        state[hf_name(name)] = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = model_class(config)
    model = model.to(dtype)
    model.load_state_dict(state, strict=True, assign=True)
    # Buffers are not in the state dict and were made on the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()

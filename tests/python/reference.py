"""transformers as an oracle: without its roundings to float32, and with the weights of GGUF files.

What a GGUF file calls a tensor comes from the gguf package, which is the format's own; so do its dequantised values.
"""

import copy
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}


@contextmanager
def exact_softmax():
    """Attention patterns and routers of float64 models in float64, for which transformers asks for a float32 softmax.

    Its sdpa attention would be exact, but returns no patterns and leaves Gemma 2's soft cap out.
    """
    softmax = torch.nn.functional.softmax

    def exact(x, dim=None, dtype=None):
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype)

    route = MixtralTopKRouter.forward

    def exact_route(self, hidden_states):  # theirs makes float32 of the logits first
        if self.weight.dtype != torch.float64:
            return route(self, hidden_states)
        logits = torch.nn.functional.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        weights, indices = logits.softmax(-1).topk(self.top_k, dim=-1)
        return logits, weights / weights.sum(-1, keepdim=True), indices

    torch.nn.functional.softmax, MixtralTopKRouter.forward = exact, exact_route
    try:
        yield
    finally:
        torch.nn.functional.softmax, MixtralTopKRouter.forward = softmax, route


def exact_forward(model: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor | None = None):
    """transformers' output with hidden_states and attentions; positions count the real tokens of a row."""
    positions = None if mask is None else (mask.long().cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), exact_softmax():
        return model(
            tokens,
            attention_mask=None if mask is None else mask.long(),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
            output_attentions=True,
        )


def gguf_names(architecture: str, n_layers: int):
    """From a tensor's name in transformers to its name in a GGUF file."""
    (arch,) = [a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    names = gguf.get_tensor_name_map(arch, n_layers)
    return lambda name: names.get_name(name, try_suffixes=(".weight", ".bias"))


def interleaved(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp keeps them in llama files: the two halves of each head alternate."""
    return rows.reshape(n_heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def deinterleaved(rows: np.ndarray, n_heads: int) -> np.ndarray:
    return rows.reshape(n_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_config(reader: gguf.GGUFReader):
    """The transformers config of a llama, qwen2 or gemma3 GGUF file."""

    def field(key: str):
        return reader.fields[f"{architecture}.{key}"].contents()

    architecture = reader.fields["general.architecture"].contents()
    tensors = {t.name: t for t in reader.tensors}
    theta = field("rope.freq_base")
    rope = {"rope_type": "default", "rope_theta": theta}
    arguments = {}
    if architecture == "gemma3":
        head_dim = field("attention.key_length")
        arguments = {
            "head_dim": head_dim,
            "query_pre_attn_scalar": head_dim,
            "sliding_window": field("attention.sliding_window"),
        }
        # The base of the layers with a window is not in the file, nor which layers these are: transformers' defaults.
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    return CLASSES[architecture][0](
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters=rope,
        tie_word_embeddings="output.weight" not in tensors,
        **arguments,
    )


def transformers_model(path: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The model of a llama, qwen2 or gemma3 GGUF file, with its own output.weight where it has one."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    config = gguf_config(reader)
    tensors = {t.name: t for t in reader.tensors}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.device("meta"):
        model = CLASSES[architecture][1](config)
    name_in_file = gguf_names(architecture, config.num_hidden_layers)
    state = {}
    for name in model.state_dict():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = tensors.pop(name_in_file(name))
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        projection = name.split(".")[-2]
        if architecture == "llama" and projection in heads:
            values = deinterleaved(values, heads[projection])
        if architecture == "gemma3" and "norm" in name:
            values = values - 1
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    assert not tensors, tensors.keys()
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    return in_dtype(model.eval(), dtype)


def in_dtype(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The model, or a copy in another dtype; buffers that no state dict holds stay float32, as in from_pretrained."""
    model = (model if dtype == torch.float32 else copy.deepcopy(model)).to(dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    if hasattr(model.model.embed_tokens, "embed_scale"):
        model.model.embed_tokens.embed_scale = torch.tensor(model.config.hidden_size**0.5)
    return model

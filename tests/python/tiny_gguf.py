"""The tiny models of tiny.py as GGUF files in float32, in the names, keys and layouts of llama.cpp's converters."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from reference import gguf_names, interleaved

ARCHITECTURES = {
    "gpt_neox": "gptneox", "gemma3_text": "gemma3", "mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe",
    "olmo3": "olmo2", "gpt_oss": "gpt-oss",
}  # fmt: skip
LLAMA = ("llama", "mistral", "mixtral")  # whose rows of q and k are interleaved


def stored(name: str, values: np.ndarray, config) -> np.ndarray:
    """A tensor of transformers as the converter of its family writes it."""
    family, heads = config.model_type, config.num_attention_heads
    if family in LLAMA and ".q_proj." in name:
        return interleaved(values, heads)
    if family in LLAMA and ".k_proj." in name:
        return interleaved(values, config.num_key_value_heads)
    if family.startswith("gemma") and "norm" in name:
        return values + np.float32(1)
    if family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    if family == "gpt_neox" and ".query_key_value." in name:
        return values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
    return values


def experts(name: str, values: np.ndarray, config) -> list[tuple[str, np.ndarray]]:
    """The tensors that the converters make of one that transformers keeps of all experts, or of a router or sinks."""
    block = f"blk.{name.split('.')[2]}."
    end = ".bias" if name.endswith("bias") else ".weight"
    if ".sinks" in name:
        return [(block + "attn_sinks.weight", values)]
    if ".experts." not in name:
        return [(block + "ffn_gate_inp" + end, values)]
    if config.model_type == "gpt_oss" and end == ".weight":
        values = values.swapaxes(1, 2)
    if "down_proj" in name:
        return [(block + "ffn_down_exps" + end, values)]
    if config.model_type == "gpt_oss":
        gate, up = values[:, ::2], values[:, 1::2]
    else:
        gate, up = np.split(values, 2, axis=1)
    return [(block + "ffn_gate_exps" + end, gate), (block + "ffn_up_exps" + end, up)]


def add_rope(writer: gguf.GGUFWriter, config) -> None:
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return
    local = rope.get("sliding_attention")
    rope = rope.get("full_attention", rope)
    if config.model_type != "gpt_neox":
        writer.add_rope_freq_base(rope["rope_theta"])
    if local is not None and local["rope_theta"] != 10000.0:
        writer.add_rope_freq_base_swa(local["rope_theta"])
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type in ("gpt_neox", "phi3", "llama", "mixtral"):
        writer.add_rope_dimension_count(int(d_head * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        longer = config.max_position_embeddings / rope["original_max_position_embeddings"]
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(longer) / math.log(rope["original_max_position_embeddings"]))
        )
        for kind in ("short", "long"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], dtype=np.float32))
    if rope["rope_type"] == "llama3":  # the converter writes what the frequencies are divided by
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        plain = 1 / rope["rope_theta"] ** (torch.arange(0, d_head, 2).float() / d_head)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())


Encode = Callable[[str, np.ndarray], tuple[np.ndarray, gguf.GGMLQuantizationType]]


def write_tiny_gguf(
    path: Path,
    model: torch.nn.Module,
    *,
    encode: Encode | None = None,
    keys: Mapping[str, object] | None = None,
    **extra: object,
) -> Path:
    """Write a model of `tiny_transformers`; `extra` are more keys of the architecture, their dots as "__".

    encode: (the file's name of a matrix, its values) -> (what is stored, its type); None: float32.
    keys: more keys by their whole names.
    """
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(
        getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    )
    writer.add_head_count(config.num_attention_heads)
    if hasattr(config, "num_key_value_heads"):
        writer.add_head_count_kv(config.num_key_value_heads)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon)
    add_rope(writer, config)
    if getattr(config, "sliding_window", None) and config.model_type != "qwen2":
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if n_experts := getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        writer.add_expert_count(n_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    if config.model_type == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)
    own = {f"{architecture}.{key.replace('__', '.')}": value for key, value in extra.items()}
    for key, value in {**own, **(keys or {})}.items():
        kinds = {list: writer.add_array, str: writer.add_string, float: writer.add_float32, bool: writer.add_bool}
        kinds.get(type(value), writer.add_uint32)(key, value)
    name_in_file = gguf_names(architecture, config.num_hidden_layers)

    def add(name: str, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        if encode is None or values.ndim < 2 or "gate_inp" in name:
            writer.add_tensor(name, values)
        else:
            data, kind = encode(name, values)
            writer.add_tensor(name, data, raw_dtype=kind)

    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".experts." in name or ".sinks" in name or ".mlp.gate." in name or ".router." in name:
            for own, values in experts(name, tensor.float().numpy(), config):
                add(own, values)
            continue
        add(name_in_file(name), stored(name, tensor.float().numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

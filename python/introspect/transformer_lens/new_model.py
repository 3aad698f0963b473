"""A model of random weights from a HookedTransformerConfig."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch

from .. import _C
from .initialisation import fan_in_and_out, uniform_
from .state_dict import native_weights
from .transformer_config import HookedTransformerConfig, LoadedConfig

ACTIVATIONS = {name: name for name in ("silu", "gelu", "gelu_new")} | dict.fromkeys(
    ("gelu_fast", "gelu_pytorch_tanh"), "gelu_new"
)
INIT_MODES = ("gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP")

# Fields that the engine has one value for, and what to say of another.
_ONLY: dict[str, tuple[Any, str]] = {
    "attn_only": (False, "every block has an MLP"),
    "attention_dir": ("causal", "attention is causal"),
    "scale_attn_by_inverse_layer_idx": (False, "scores are divided by one number in all layers"),
    "final_rms": (False, "the last norm is of the blocks' kind"),
    "use_hook_tokens": (False, "tokens have no hook point"),
    "post_embedding_ln": (False, "embeddings are not normed"),
    "rotary_adjacent_pairs": (False, "rotary dimensions are paired half a head apart"),
    "load_in_4bit": (False, "weights are held in a float dtype"),
    "num_experts": (None, "mixtures of experts are read from files, not made"),
    "n_devices": (1, "a model lives on one device"),
}


def native_config(cfg: HookedTransformerConfig) -> _C.Config:
    """The native Config that TransformerLens's fields describe.

    Raises:
        ConfigError: a field that asks for what the engine does not run, named, or sizes that no model has.
    """
    if isinstance(cfg, LoadedConfig):
        return cfg.native.cfg
    who = "HookedTransformer"
    for name, (only, why) in _ONLY.items():
        if (value := getattr(cfg, name)) != only:
            raise _C.ConfigError(f"{who}: {name}={value!r} is not supported: {why}")
    if cfg.act_fn not in ACTIVATIONS:
        raise _C.ConfigError(f"{who}: act_fn={cfg.act_fn!r} is not supported; one of {', '.join(ACTIVATIONS)} is")
    norm = {"LN": "LN", "LNPre": "LN", "RMS": "RMS", "RMSPre": "RMS"}.get(cfg.normalization_type or "")
    if norm is None:
        raise _C.ConfigError(
            f"{who}: normalization_type={cfg.normalization_type!r} is not supported; LN, LNPre, RMS and RMSPre are"
        )
    if cfg.positional_embedding_type not in ("standard", "rotary"):
        raise _C.ConfigError(
            f"{who}: positional_embedding_type={cfg.positional_embedding_type!r} is not supported; 'standard' and "
            "'rotary' are"
        )
    if cfg.d_vocab_out not in (-1, cfg.d_vocab):
        raise _C.ConfigError(f"{who}: d_vocab_out must be d_vocab = {cfg.d_vocab}, got {cfg.d_vocab_out}")
    if cfg.init_mode not in INIT_MODES:
        raise _C.ConfigError(f"{who}: init_mode must be one of {', '.join(INIT_MODES)}, got {cfg.init_mode!r}")
    if cfg.ungroup_grouped_query_attention and cfg.n_key_value_heads not in (None, cfg.n_heads):
        raise _C.ConfigError(f"{who}: ungroup_grouped_query_attention=True is not supported: each group has one key")
    rotary = cfg.positional_embedding_type == "rotary"
    fields: dict[str, Any] = {
        "model_name": cfg.model_name,
        "original_architecture": cfg.original_architecture or "HookedTransformer",
        **{
            name: getattr(cfg, name)
            for name in ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx")
        },
        "n_key_value_heads": cfg.n_key_value_heads or cfg.n_heads,
        "act_fn": ACTIVATIONS[cfg.act_fn],
        "gated_mlp": cfg.gated_mlp,
        "normalization_type": norm,
        "eps": cfg.eps,
        "use_qk_norm": cfg.use_qk_norm,
        "use_normalization_before_and_after": cfg.use_normalization_before_and_after,
        "positional_embedding_type": cfg.positional_embedding_type,
        "rotary_dim": cfg.rotary_dim if rotary else 0,
        "rotary_base": float(cfg.rotary_base),
        "window_size": cfg.window_size or 0 if cfg.use_local_attn else 0,
        "attn_types": list(cfg.attn_types or [])[: cfg.n_layers] if cfg.use_local_attn else [],
        "attn_scale": float(cfg.attn_scale) if cfg.use_attn_scale else 1.0,
        "attn_scores_soft_cap": max(float(cfg.attn_scores_soft_cap), 0.0),
        "output_logits_soft_cap": max(float(cfg.output_logits_soft_cap), 0.0),
        "parallel_attn_mlp": cfg.parallel_attn_mlp,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "qkv_bias": True,
        "attn_out_bias": True,
        "mlp_bias": True,
    }
    if rotary and cfg.use_NTK_by_parts_rope:
        fields |= {
            "rotary_scaling": "llama3",
            "rotary_scaling_factor": float(cfg.NTK_by_parts_factor),
            "rotary_scaling_low_freq_factor": float(cfg.NTK_by_parts_low_freq_factor),
            "rotary_scaling_high_freq_factor": float(cfg.NTK_by_parts_high_freq_factor),
            "rotary_scaling_original_max_position": float(cfg.NTK_original_ctx_len),
        }
    return _C.Config.from_json(json.dumps(fields))


def new_native(cfg: HookedTransformerConfig, tokenizer: Any, device: torch.device) -> _C.Model:
    """The native model that a config describes, with TransformerLens's random weights.

    Weights are drawn from torch's generator (seeded with ``cfg.seed`` if that is given) in the order in which
    TransformerLens draws them, on the CPU and in the model's dtype; biases are zero and the weights of norms one.

    Raises:
        ConfigError: a field that asks for what the engine does not run.
    """
    if cfg.d_vocab == -1:
        if tokenizer is None:
            raise _C.ConfigError("HookedTransformer: d_vocab must be given where there is no tokenizer")
        cfg.d_vocab = cfg.d_vocab_out = max(tokenizer.get_vocab().values()) + 1
    native = _C.new_model(native_config(cfg), dtype=cfg.dtype, device=device)
    if not cfg.init_weights:
        return native
    if cfg.seed is not None:
        torch.manual_seed(cfg.seed)
    drawn = {
        name: _drawn(name, torch.empty(native.weight(name).shape, dtype=cfg.dtype), cfg) for name in _in_order(native)
    }
    if native.cfg.tie_word_embeddings:
        drawn["unembed.W_U"] = drawn["embed.W_E"].T
    weights, _, _ = native_weights(native, drawn, strict=False)
    return native.with_weights(weights)


def _in_order(native: _C.Model) -> Iterator[str]:
    """The matrices in the order in which TransformerLens's modules declare them."""
    names = set(native.weight_names())
    inside = ("W_Q", "W_O", "W_K", "_W_K", "W_V", "_W_V")
    for name in ("embed.W_E", "pos_embed.W_pos"):
        if name in names:
            yield name
    for layer in range(native.cfg.n_layers):
        for part in (*(f"attn.{name}" for name in inside), "mlp.W_in", "mlp.W_out", "mlp.W_gate"):
            if (name := f"blocks.{layer}.{part}") in names:
                yield name
    yield "unembed.W_U"


def _drawn(name: str, weight: torch.Tensor, cfg: HookedTransformerConfig) -> torch.Tensor:
    """One matrix, in TransformerLens's shape."""
    fan_in, fan_out = fan_in_and_out(weight)
    gain = cfg.initializer_range
    if gain < 0:  # of a model that was loaded
        gain = 0.8 / math.sqrt(cfg.d_model) if cfg.init_mode == "gpt2" else 1.0
    if cfg.init_mode == "gpt2":
        return weight.normal_(std=gain)
    if cfg.init_mode == "muP":  # TransformerLens takes "unembed" for an embedding, too
        return weight.normal_(std=1.0 if "embed" in name else fan_in**-0.5)
    kind, distribution = cfg.init_mode.split("_")
    std = gain * math.sqrt(2 / (fan_in + fan_out) if kind == "xavier" else 2 / fan_in)  # a ReLU's gain is sqrt(2)
    return uniform_(weight, std) if distribution == "uniform" else weight.normal_(std=std)

"""A model's sizes and options under the names that TransformerLens's ``cfg`` has for them."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .. import _C

# Which families were trained without a BOS token in front: TransformerLens does not prepend one for them.
_WITHOUT_BOS = {
    "GPTNeoXForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "PhiForCausalLM",
}

# TransformerLens's fields in its order, which are arguments by position, with the defaults; None of the first four.
FIELDS: dict[str, Any] = {
    "n_layers": ..., "d_model": ..., "n_ctx": ..., "d_head": ..., "model_name": "custom", "n_heads": -1,
    "d_mlp": None, "act_fn": None, "d_vocab": -1, "eps": 1e-5, "use_attn_result": False, "use_attn_scale": True,
    "attn_scale": -1.0, "use_split_qkv_input": False, "use_hook_mlp_in": False, "use_attn_in": False,
    "use_qk_norm": False, "use_local_attn": False, "ungroup_grouped_query_attention": False,
    "original_architecture": None, "from_checkpoint": False, "checkpoint_index": None, "checkpoint_label_type": None,
    "checkpoint_value": None, "tokenizer_name": None, "window_size": None, "attn_types": None, "init_mode": "gpt2",
    "normalization_type": "LN", "device": None, "n_devices": 1, "attention_dir": "causal", "attn_only": False,
    "seed": None, "initializer_range": -1.0, "init_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "positional_embedding_type": "standard", "final_rms": False, "d_vocab_out": -1, "parallel_attn_mlp": False,
    "rotary_dim": None, "n_params": None, "use_hook_tokens": False, "gated_mlp": False, "default_prepend_bos": True,
    "dtype": torch.float32, "tokenizer_prepends_bos": None, "n_key_value_heads": None, "post_embedding_ln": False,
    "rotary_base": 10000.0, "trust_remote_code": False, "rotary_adjacent_pairs": False, "load_in_4bit": False,
    "num_experts": None, "experts_per_token": None, "relative_attention_max_distance": None,
    "relative_attention_num_buckets": None, "decoder_start_token_id": None, "tie_word_embeddings": False,
    "use_normalization_before_and_after": False, "attn_scores_soft_cap": -1.0, "output_logits_soft_cap": -1.0,
    "use_NTK_by_parts_rope": False, "NTK_by_parts_low_freq_factor": 1.0, "NTK_by_parts_high_freq_factor": 4.0,
    "NTK_by_parts_factor": 8.0, "NTK_original_ctx_len": 8192,
}  # fmt: skip


class HookedTransformerConfig:
    """What a model of one's own is to be: ``HookedTransformer(cfg)`` makes it, with random weights.

    Fields, their order and their defaults are TransformerLens's; sizes that are left out follow from the others as
    there (n_heads from d_model and d_head, d_mlp is 4 d_model, initializer_range is 0.8 / sqrt(d_model)). What cannot
    be run is refused by ``HookedTransformer(cfg)``, which names the field.

    Args:
        fields: in TransformerLens's order, or by name; n_layers, d_model, n_ctx and d_head are required, and act_fn.

    Raises:
        ConfigError: a field that does not exist, is missing or has a value that no model has.
    """

    # Those that _fill_in works out from others.
    n_heads: int
    d_vocab: int
    d_vocab_out: int
    d_mlp: Any
    initializer_range: float
    rotary_dim: Any
    attn_scale: float
    dtype: Any
    device: Any

    def __init__(self, *fields: Any, **named: Any) -> None:
        who = "HookedTransformerConfig"
        names = list(FIELDS)
        given = {**dict(zip(names, fields, strict=False)), **named}
        if unknown := [name for name in named if name not in FIELDS]:
            raise _C.ConfigError(f"{who}: there is no field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
        if missing := [name for name in names[:4] if name not in given]:
            raise _C.ConfigError(f"{who}: {', '.join(missing)} must be given")
        for name, default in FIELDS.items():
            object.__setattr__(self, name, given.get(name, default))
        for name in ("n_layers", "d_model", "n_ctx", "d_head"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise _C.ConfigError(f"{who}: {name} must be a positive int, got {value!r}")
        self._fill_in(who)

    def _fill_in(self, who: str) -> None:
        if self.n_heads == -1:
            self.n_heads = self.d_model // self.d_head
            if self.d_model % self.d_head:
                warnings.warn(
                    f"{who}: d_model {self.d_model} is no multiple of d_head {self.d_head}: n_heads is {self.n_heads}",
                    stacklevel=4,
                )
        if self.seed is not None:
            self.set_seed_everywhere(self.seed)
        if not self.attn_only:
            self.d_mlp = 4 * self.d_model if self.d_mlp is None else self.d_mlp
            if self.act_fn is None:
                raise _C.ConfigError(f"{who}: act_fn must be given, such as 'gelu'")
        if self.use_local_attn and (self.window_size is None or self.attn_types is None):
            raise _C.ConfigError(f"{who}: use_local_attn needs window_size and attn_types")
        if self.initializer_range < 0:
            self.initializer_range = 0.8 / math.sqrt(self.d_model) if self.init_mode == "gpt2" else 1.0
        if self.d_vocab_out == -1:
            self.d_vocab_out = self.d_vocab
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            self.rotary_dim = self.d_head
        if self.use_attn_scale and self.attn_scale == -1.0:
            self.attn_scale = math.sqrt(self.d_head)
        mlp = 0 if self.attn_only else self.d_model * self.d_mlp * (3 if self.gated_mlp else 2)
        self.n_params = self.n_layers * (4 * self.d_model * self.d_head * self.n_heads + mlp)
        if isinstance(self.dtype, str):
            self.dtype = getattr(torch, self.dtype.removeprefix("torch."))
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> HookedTransformerConfig:
        """The config with these fields."""
        return cls(**config_dict)

    @classmethod
    def unwrap(cls, config: Mapping[str, Any] | HookedTransformerConfig) -> HookedTransformerConfig:
        """A config as it is, or that of a dict."""
        return cls.from_dict(config) if isinstance(config, Mapping) else config

    def set_seed_everywhere(self, seed: int) -> None:
        """Seeds torch, numpy and random."""
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    def is_layer_norm_activation(self) -> bool:
        """True for activations with a norm in them, such as "solu_ln"."""
        return self.act_fn is not None and self.act_fn.endswith("_ln")

    @property
    def uses_rms_norm(self) -> bool:
        """True for RMSNorm, False for LayerNorm."""
        return (self.normalization_type or "").startswith("RMS")

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return {name: getattr(self, name) for name in FIELDS}

    def __repr__(self) -> str:
        return "HookedTransformerConfig:\n" + "\n".join(f"{name}={value!r}" for name, value in self.to_dict().items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HookedTransformerConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:  # what no field has; the types of the fields are not known to checkers
        raise AttributeError(f"HookedTransformerConfig has no field {name!r}")


class LoadedConfig(HookedTransformerConfig):
    """A view of the native Config. Only the options below are the model's own; sizes cannot be changed.

    Attributes:
        use_attn_result: "every point" includes ``attn.hook_result``; by its name it can always be hooked. The same
            holds for the three that follow.
        use_split_qkv_input: ``hook_q_input``, ``hook_k_input``, ``hook_v_input``.
        use_attn_in: ``hook_attn_in``.
        use_hook_mlp_in: ``hook_mlp_in``.
        default_prepend_bos: whether text gets a BOS token in front unless a call says otherwise.
        tokenizer_name: where the model came from.
        layer_norm_folding: the weights of norms were folded into the products after them.
    """

    _FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")
    _OWN = (*_FLAGS, "default_prepend_bos", "tokenizer_name", "layer_norm_folding", "native", "given")

    def __init__(
        self,
        native: _C.Model,
        *,
        tokenizer_name: str,
        default_prepend_bos: bool | None = None,
        layer_norm_folding: bool = False,
        given: HookedTransformerConfig | None = None,
    ) -> None:
        self.native = native
        self.given = given  # what a model of random weights was made from
        for flag in self._FLAGS:
            setattr(self, flag, bool(getattr(given, flag, False)))
        if default_prepend_bos is None:
            default_prepend_bos = native.cfg.original_architecture not in _WITHOUT_BOS
        self.default_prepend_bos = default_prepend_bos
        self.tokenizer_name = tokenizer_name
        self.layer_norm_folding = layer_norm_folding

    def hook_flags(self) -> dict[str, bool]:
        """The four flags, as the engine takes them."""
        return {flag: getattr(self, flag) for flag in self._FLAGS}

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.native.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.native.device

    @property
    def normalization_type(self) -> str:
        """ "RMS" or "LN", with "Pre" after it once the norms' weights are folded."""
        return self.native.cfg.normalization_type + ("Pre" if self.layer_norm_folding else "")

    @property
    def d_vocab_out(self) -> int:  # type: ignore[override]
        """Size of the unembedding, that of the embedding."""
        return self.native.cfg.d_vocab

    @property
    def use_local_attn(self) -> bool:
        """True if a layer sees only a window of keys."""
        return self.native.cfg.window_size > 0

    @property
    def window_size(self) -> int | None:
        """Keys that a local layer sees, or None."""
        return self.native.cfg.window_size or None

    @property
    def attn_types(self) -> list[str] | None:
        """ "global" or "local" for each layer, or None where all are global."""
        return list(self.native.cfg.attn_types) or None

    @property
    def attn_scores_soft_cap(self) -> float:
        """c of c tanh(scores / c), or -1."""
        return self.native.cfg.attn_scores_soft_cap or -1.0

    @property
    def output_logits_soft_cap(self) -> float:
        """c of c tanh(logits / c), or -1."""
        return self.native.cfg.output_logits_soft_cap or -1.0

    @property
    def n_params(self) -> int:
        """Weights of attention and MLPs, without biases, norms and embeddings, as TransformerLens counts them."""
        c = self.native.cfg
        mlp = c.d_mlp * (3 if c.gated_mlp else 2)
        if c.num_experts:  # and the router's row of each
            mlp = (mlp + 1) * c.num_experts
        return c.n_layers * c.d_model * (4 * c.d_head * c.n_heads + mlp)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("native", "given"):
            raise AttributeError(name)
        try:
            return getattr(self.native.cfg, name)
        except AttributeError:
            pass
        if name in FIELDS:
            return FIELDS[name] if self.given is None else getattr(self.given, name)
        raise AttributeError(f"HookedTransformerConfig has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._OWN:
            raise AttributeError(f"HookedTransformerConfig: {name} belongs to the checkpoint and cannot be set")
        if name in self._FLAGS and not isinstance(value, bool):
            raise TypeError(f"HookedTransformerConfig: {name} must be True or False, got {value!r}")
        object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        native = [name for name in dir(self.native.cfg) if not name.startswith("_")]
        views = [name for name, kind in vars(type(self)).items() if isinstance(kind, property)]
        names = sorted({*native, *views, *FIELDS, *self._OWN} - {"native", "given", "validate"})
        return {name: value for name in names if not callable(value := getattr(self, name))}

"""A model's sizes and options under the names that TransformerLens's ``cfg`` has for them."""

from __future__ import annotations

from typing import Any

import torch

from . import _C

# Which families were trained without a BOS token in front: TransformerLens does not prepend one for them.
_WITHOUT_BOS = {"GPTNeoXForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "PhiForCausalLM"}


class HookedTransformerConfig:
    """A view of the native Config. Only the options below are the model's own; sizes cannot be changed.

    Attributes:
        use_attn_result: "every point" includes ``attn.hook_result``; by its name it can always be hooked. The same
            holds for the three that follow.
        use_split_qkv_input: ``hook_q_input``, ``hook_k_input``, ``hook_v_input``.
        use_attn_in: ``hook_attn_in``.
        use_hook_mlp_in: ``hook_mlp_in``.
        default_prepend_bos: whether text gets a BOS token in front unless a call says otherwise.
        tokenizer_name: where the model came from.
        layer_norm_folding: the weights of norms were folded into the products behind them.
    """

    _FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")
    _OWN = (*_FLAGS, "default_prepend_bos", "tokenizer_name", "layer_norm_folding", "engine")
    # Fields of TransformerLens that are the same for every model here.
    _CONSTANT: dict[str, Any] = {  # noqa: RUF012
        "attention_dir": "causal",
        "attn_only": False,
        "n_devices": 1,
        "seed": None,
        "ungroup_grouped_query_attention": False,
        "use_attn_scale": True,
        "use_hook_tokens": False,
    }

    def __init__(
        self,
        engine: _C.Model,
        *,
        tokenizer_name: str,
        default_prepend_bos: bool | None = None,
        layer_norm_folding: bool = False,
    ) -> None:
        self.engine = engine
        self.use_attn_result = self.use_split_qkv_input = self.use_attn_in = self.use_hook_mlp_in = False
        if default_prepend_bos is None:
            default_prepend_bos = engine.cfg.original_architecture not in _WITHOUT_BOS
        self.default_prepend_bos = default_prepend_bos
        self.tokenizer_name = tokenizer_name
        self.layer_norm_folding = layer_norm_folding

    def hook_flags(self) -> dict[str, bool]:
        """The four flags, as the engine takes them."""
        return {flag: getattr(self, flag) for flag in self._FLAGS}

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.engine.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.engine.device

    @property
    def normalization_type(self) -> str:
        """ "RMS" or "LN", with "Pre" after it once the norms' weights are folded."""
        return self.engine.cfg.normalization_type + ("Pre" if self.layer_norm_folding else "")

    @property
    def d_vocab_out(self) -> int:
        """Size of the unembedding, that of the embedding."""
        return self.engine.cfg.d_vocab

    @property
    def use_local_attn(self) -> bool:
        """True if a layer sees only a window of keys."""
        return self.engine.cfg.window_size > 0

    @property
    def window_size(self) -> int | None:
        """Keys that a local layer sees, or None."""
        return self.engine.cfg.window_size or None

    @property
    def attn_types(self) -> list[str] | None:
        """ "global" or "local" for each layer, or None where all are global."""
        return list(self.engine.cfg.attn_types) or None

    @property
    def attn_scores_soft_cap(self) -> float:
        """c of c tanh(scores / c), or -1."""
        return self.engine.cfg.attn_scores_soft_cap or -1.0

    @property
    def output_logits_soft_cap(self) -> float:
        """c of c tanh(logits / c), or -1."""
        return self.engine.cfg.output_logits_soft_cap or -1.0

    @property
    def uses_rms_norm(self) -> bool:
        """True for RMSNorm, False for LayerNorm."""
        return self.normalization_type.startswith("RMS")

    def __getattr__(self, name: str) -> Any:
        if name in self._CONSTANT:
            return self._CONSTANT[name]
        if name.startswith("__") or name == "engine":
            raise AttributeError(name)
        try:
            return getattr(self.engine.cfg, name)
        except AttributeError:
            raise AttributeError(f"HookedTransformerConfig has no field {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._OWN:
            raise AttributeError(f"HookedTransformerConfig: {name} belongs to the checkpoint and cannot be set")
        if name in self._FLAGS and not isinstance(value, bool):
            raise TypeError(f"HookedTransformerConfig: {name} must be True or False, got {value!r}")
        super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        native = [name for name in dir(self.engine.cfg) if not name.startswith("_")]
        views = [name for name, kind in vars(type(self)).items() if isinstance(kind, property)]
        names = sorted({*native, *views, *self._CONSTANT, *self._OWN} - {"engine", "validate"})
        return {name: value for name in names if not callable(value := getattr(self, name))}

    def __repr__(self) -> str:
        return "HookedTransformerConfig:\n" + "\n".join(f"{name}={value!r}" for name, value in self.to_dict().items())

"""What repeng's functions take for a model, as an introspect.Model."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import Any

import torch

from .. import _C
from ..hooked_model import HookedModel
from ..hub import pretrained
from ..model import Model, load_model

# A transformers model -> the copy that stands for it, so that training and steering share one.
_COPIES: weakref.WeakKeyDictionary[torch.nn.Module, HookedModel] = weakref.WeakKeyDictionary()

# config.json's model_type where it is not the class's name up to "For", in small letters.
_MODEL_TYPES = {"GPT2LMHeadModel": "gpt2", "GPTNeoXForCausalLM": "gpt_neox", "Gemma3ForCausalLM": "gemma3_text"}


@dataclass(frozen=True)
class Config:
    """Of a model's sizes those that programs look up, under transformers' names."""

    model_type: str
    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int


def as_model(model: Any) -> HookedModel:
    """The model that is meant: an introspect.Model or HookedTransformer itself, what a ControlModel wraps, or a new one
    of a path, a name or a transformers model.

    Raises:
        ConfigError: an architecture or option that is not supported.
        IoError: as introspect.load_model does.
        TypeError: anything else.
    """
    if isinstance(model, HookedModel):
        return model
    if isinstance(model, str | os.PathLike):
        return load_model(model)
    if isinstance(inner := getattr(model, "model", None), HookedModel):
        return inner
    if not (isinstance(model, torch.nn.Module) and hasattr(model, "config")):
        raise TypeError(f"a model must be an introspect.Model, a path, a name or a transformers model, got {model!r}")
    if model not in _COPIES:
        name = getattr(model, "name_or_path", "") or type(model).__name__
        weights = next(model.parameters())
        native = pretrained.load_native(name, hf_model=model, dtype=weights.dtype, device=weights.device)
        _COPIES[model] = Model(native, name=name)
    return _COPIES[model]


def config_of(model: Any) -> Any:
    """The configuration of a transformers model, or what ours has of one."""
    if (config := getattr(model, "config", None)) is not None:
        return config
    c = as_model(model).native.cfg
    name = c.original_architecture
    return Config(
        model_type=_MODEL_TYPES.get(name) or name.split("For")[0].lower(),
        num_hidden_layers=c.n_layers,
        hidden_size=c.d_model,
        vocab_size=c.d_vocab,
        max_position_embeddings=c.n_ctx,
    )


def after_final_norm(model: HookedModel, resid: torch.Tensor) -> torch.Tensor:
    """Residuals [..., d_model] after the last block as transformers' last hidden state has them, in float32."""
    normed = _C.apply_norm(
        model.native, resid.to(model.device, model.dtype)[None], None, layer=model.native.cfg.n_layers
    )
    return normed[0].float().cpu()

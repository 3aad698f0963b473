"""Which points "every point" includes, and the methods of a torch module that change nothing here."""

from __future__ import annotations

from typing import TypeVar

import torch

from .. import _C
from .lens_model import LensModel

Lens = TypeVar("Lens", bound=LensModel)


def set_use_attn_result(model: LensModel, use_attn_result: bool) -> None:
    """Whether "every point" includes ``attn.hook_result``: each head's own part of attn_out."""
    model.cfg.use_attn_result = use_attn_result


def set_use_split_qkv_input(model: LensModel, use_split_qkv_input: bool) -> None:
    """Whether "every point" includes ``hook_q_input``, ``hook_k_input`` and ``hook_v_input``."""
    model.cfg.use_split_qkv_input = use_split_qkv_input


def set_use_attn_in(model: LensModel, use_attn_in: bool) -> None:
    """Whether "every point" includes ``hook_attn_in``."""
    model.cfg.use_attn_in = use_attn_in


def set_use_hook_mlp_in(model: LensModel, use_hook_mlp_in: bool) -> None:
    """Whether "every point" includes ``hook_mlp_in``."""
    model.cfg.use_hook_mlp_in = use_hook_mlp_in


def set_ungroup_grouped_query_attention(model: LensModel, ungroup_grouped_query_attention: bool) -> None:
    """False leaves keys and values as they are, one for each group.

    Raises:
        ConfigError: True, in a model of grouped keys.
    """
    if ungroup_grouped_query_attention and model.cfg.n_key_value_heads != model.cfg.n_heads:
        raise _C.ConfigError(
            "set_ungroup_grouped_query_attention: keys and values are not repeated for each query head here: "
            "hook_k and hook_v have n_key_value_heads, and W_K and W_V repeat theirs already"
        )


def eval(model: Lens) -> Lens:
    """The model itself: it has no dropout, and no other mode."""
    return model


def train(model: Lens, mode: bool = True) -> Lens:
    """The model itself, as ``eval``."""
    return model


def to(model: Lens, device_or_dtype: torch.device | torch.dtype | str, print_details: bool = True) -> Lens:
    """The model itself, if it is there already.

    Raises:
        ConfigError: it is not. Weights do not move: load the model with ``device=`` or ``dtype=``.
    """
    dtype, device = model.cfg.dtype, model.cfg.device
    if isinstance(device_or_dtype, torch.dtype):
        same = device_or_dtype == dtype
    else:
        wanted = torch.device(device_or_dtype)
        same = wanted.type == device.type and wanted.index in (None, device.index)
    if not same:
        raise _C.ConfigError(
            f"to: the model is {dtype} on {device}; load it with device= or dtype= for {device_or_dtype}"
        )
    return model


def cpu(model: Lens) -> Lens:
    """As ``to("cpu")``."""
    return to(model, "cpu")


def cuda(model: Lens) -> Lens:
    """As ``to("cuda")``."""
    return to(model, "cuda")

"""Passes of a HookedTransformer: with a loss, from and to a block, with hooks, and kept in caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from .. import _C
from ..hooks.manager import Hooks, caching_hooks
from ..hooks.points import NamesFilter
from ..hooks.slices import Slice, SliceInput
from .key_value_cache import HookedTransformerKeyValueCache
from .lens_model import LensModel, Side
from .losses import lm_cross_entropy_loss
from .text import tokens_of


class Output(NamedTuple):
    """What ``return_type="both"`` gives."""

    logits: torch.Tensor
    loss: torch.Tensor


def forward(
    model: LensModel,
    input: str | Sequence[str] | torch.Tensor,
    return_type: Literal["logits", "loss", "both"] | None = "logits",
    loss_per_token: bool = False,
    prepend_bos: bool | None = None,
    padding_side: Side | None = None,
    start_at_layer: int | None = None,
    tokens: torch.Tensor | None = None,
    shortformer_pos_embed: None = None,
    attention_mask: torch.Tensor | None = None,
    stop_at_layer: int | None = None,
    past_kv_cache: HookedTransformerKeyValueCache | None = None,
) -> Any:
    """One forward pass.

    Args:
        input: text, a list of texts (padded where they differ in length), tokens [batch, pos] or [pos], or, with
            ``start_at_layer``, the residual before that block [batch, pos, d_model].
        return_type: "logits" (float32 [batch, pos, d_vocab]), "loss" (cross-entropy of the next token), "both" (a
            pair), or None to run the blocks only.
        loss_per_token: [batch, pos - 1] instead of the mean.
        prepend_bos: to text; None is ``cfg.default_prepend_bos``.
        padding_side: None is the tokenizer's.
        start_at_layer: the first block that is run; negative ones count from the end.
        tokens: what the loss is of, with ``start_at_layer``.
        shortformer_pos_embed: None: no such model is supported.
        attention_mask: [batch, pos], 0 for padding at either side; with a cache, of the new positions. If None it
            follows from the texts, or from pad tokens at the ends of rows: those that are at the left, with that
            padding side; and where the tokenizer has a pad token of its own, those that some rows have more of.
            Padding counts for neither logits nor loss. (TransformerLens masks left padding only, and averages the
            loss over padding at the right.)
        stop_at_layer: the first block that is not run; the residual before it is returned.
        past_kv_cache: goes before the input, and is appended to unless frozen.

    Raises:
        ShapeError: wrong shapes, or more than n_ctx positions.
        IndexError: tokens or layers out of range.
        ConfigError: text, and the model has no tokenizer.
    """
    if return_type not in ("logits", "loss", "both", None):
        raise ValueError(f"forward: return_type must be 'logits', 'loss', 'both' or None, got {return_type!r}")
    if shortformer_pos_embed is not None:
        raise _C.ConfigError("forward: shortformer_pos_embed is not supported")
    if start_at_layer is None:
        input, mask = tokens_of(model, input, prepend_bos, padding_side)
        tokens = input
        attention_mask = mask if attention_mask is None else attention_mask
    elif not isinstance(input, torch.Tensor):
        raise TypeError(f"forward: start_at_layer takes a residual, got {type(input).__name__}")
    if attention_mask is not None:
        attention_mask = attention_mask.to(torch.bool)[..., -input.shape[1] :]  # new positions of a whole mask
    with_loss = stop_at_layer is None and return_type in ("loss", "both")
    if with_loss and tokens is None:
        raise ValueError("forward: tokens must be given for a loss with start_at_layer")
    out: Any = model._forward(
        input,
        cache=None if past_kv_cache is None else past_kv_cache.for_pass(),
        attention_mask=attention_mask,
        logits_at="none" if return_type is None else "all",
        start_at_layer=_layer(model, start_at_layer, "start_at_layer"),
        stop_at_layer=_layer(model, stop_at_layer, "stop_at_layer"),
    )
    if not with_loss or tokens is None:
        return out
    loss = loss_fn(model, out, tokens, attention_mask, per_token=loss_per_token)
    return loss if return_type == "loss" else Output(out, loss)


def _layer(model: LensModel, layer: int | None, who: str) -> int | None:
    n_layers = model.native.cfg.n_layers
    if layer is None:
        return None
    if not -n_layers <= layer <= n_layers:
        raise IndexError(f"forward: {who} must be {-n_layers} to {n_layers}, got {layer}")
    return layer + n_layers if layer < 0 else layer


def loss_fn(
    model: LensModel,
    logits: torch.Tensor,
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    per_token: bool = False,
) -> torch.Tensor:
    """Cross-entropy of the next token: ``utils.lm_cross_entropy_loss``."""
    return lm_cross_entropy_loss(logits, tokens, attention_mask, per_token)


def run_with_hooks(
    model: LensModel,
    *model_args: Any,
    fwd_hooks: Hooks = (),
    bwd_hooks: Hooks = (),
    reset_hooks_end: bool = True,
    clear_contexts: bool = False,
    **model_kwargs: Any,
) -> Any:
    """A forward pass with hooks that go when it ends.

    Args:
        model_args: those of ``forward``, as ``model_kwargs`` are.
        fwd_hooks: (name, hook) pairs; a name may be a list of names or a predicate on them.
        bwd_hooks: the same for gradients: they act on the backward pass of this output, whenever it is run (in
            TransformerLens only with ``reset_hooks_end=False``).
        reset_hooks_end: remove these hooks after the pass.
        clear_contexts: empty the ``ctx`` of every hook point after it.

    Raises:
        HookError: a name that does not exist (the nearest are listed), or a replacement of another shape or dtype.
    """
    with model.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
        return model.forward(*model_args, **model_kwargs)


def run_with_cache(
    model: LensModel,
    *model_args: Any,
    return_cache_object: bool = True,
    remove_batch_dim: bool = False,
    names_filter: NamesFilter = None,
    device: torch.device | str | None = None,
    incl_bwd: bool = False,
    reset_hooks_end: bool = True,
    clear_contexts: bool = False,
    pos_slice: Slice | SliceInput = None,
    dtype: torch.dtype | None = None,
    heads: Sequence[int] | None = None,
    **model_kwargs: Any,
) -> tuple[Any, Any]:
    """The output of a forward pass and an ActivationCache.

    Args:
        model_args: those of ``forward``, as ``model_kwargs`` are.
        return_cache_object: False gives a dict.
        remove_batch_dim: drop the first dimension of what is cached, for a batch of one.
        names_filter: a name, a list of names, a predicate on names, or None for every point.
        device: where activations are kept; the model stays where it is.
        incl_bwd: call ``backward`` on the output, which must be a scalar (``return_type="loss"``), and cache the
            gradients under the hook names with ``_grad`` after them.
        reset_hooks_end: False goes on recording in later passes.
        clear_contexts: empty the ``ctx`` of every hook point afterwards.
        pos_slice: which positions are kept, as ``utils.Slice`` takes them; an int keeps its dimension.
        dtype: in which activations are kept.
        heads: which heads are kept; only points that have heads may then be asked for.

    Raises:
        HookError: a name that does not exist (the nearest are listed), or a predicate that is true of none.
        ShapeError: remove_batch_dim for a batch of more than one.
        ValueError: incl_bwd, and the output is not a scalar.
    """

    def run() -> Any:
        if not incl_bwd:
            return model.forward(*model_args, **model_kwargs)
        with torch.enable_grad():
            out = model.forward(*model_args, **model_kwargs)
            if not isinstance(out, torch.Tensor) or out.numel() != 1:
                raise ValueError("run_with_cache: incl_bwd needs a scalar output: return_type='loss'")
            out.backward()
        return out

    out, cache = model._recorded(
        run,
        names_filter,
        incl_bwd=incl_bwd,
        device=device,
        dtype=dtype,
        pos_slice=pos_slice,
        heads=heads,
        remove_batch_dim=remove_batch_dim,
        reset_hooks_end=reset_hooks_end,
        clear_contexts=clear_contexts,
    )
    return out, cache if return_cache_object else cache.cache_dict


def get_caching_hooks(
    model: LensModel,
    names_filter: NamesFilter = None,
    incl_bwd: bool = False,
    device: torch.device | str | None = None,
    remove_batch_dim: bool = False,
    cache: dict[str, torch.Tensor] | None = None,
    pos_slice: Slice | SliceInput = None,
) -> tuple[dict[str, torch.Tensor], list, list]:
    """(dict, fwd_hooks, bwd_hooks) of hooks that will fill the dict, to be added by the caller.

    Arguments and errors are those of ``run_with_cache``, which records without Python.
    """
    cache = {} if cache is None else cache
    forward, backward = caching_hooks(
        model._select(names_filter, "get_caching_hooks"),
        cache,
        incl_bwd=incl_bwd,
        device=device,
        remove_batch_dim=remove_batch_dim,
        pos_slice=Slice.unwrap(pos_slice),
    )
    return cache, forward, backward


def add_caching_hooks(
    model: LensModel,
    names_filter: NamesFilter = None,
    incl_bwd: bool = False,
    device: torch.device | str | None = None,
    remove_batch_dim: bool = False,
    cache: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The dict of ``get_caching_hooks``, filled by every pass until hooks are reset."""
    cache, forward, backward = get_caching_hooks(model, names_filter, incl_bwd, device, remove_batch_dim, cache)
    for name, hook in forward:
        model.add_hook(name, hook)
    for name, hook in backward:
        model.add_hook(name, hook, "bwd")
    return cache


def input_to_embed(
    model: LensModel,
    input: str | Sequence[str] | torch.Tensor,
    prepend_bos: bool | None = None,
    padding_side: Side | None = None,
    attention_mask: torch.Tensor | None = None,
    past_kv_cache: Any = None,
) -> tuple[torch.Tensor, torch.Tensor, None, torch.Tensor | None]:
    """(residual before block 0 [batch, pos, d_model], tokens [batch, pos], None, attention mask or None).

    The residual is what ``forward(..., start_at_layer=0)`` takes; arguments are those of ``forward``.

    Raises:
        ConfigError: past_kv_cache: a pass that starts at a layer cannot go on from a cache.
    """
    if past_kv_cache is not None:
        raise _C.ConfigError("input_to_embed: past_kv_cache is not supported: give it to forward, with tokens")
    tokens, mask = tokens_of(model, input, prepend_bos, padding_side)
    mask = mask if attention_mask is None else attention_mask
    return model.forward(tokens, attention_mask=mask, stop_at_layer=0), tokens, None, mask

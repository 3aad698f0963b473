"""Masks, positions and BOS tokens, for tensors of tokens."""

from __future__ import annotations

from typing import Any

import torch

from .. import _C


def get_cumsum_along_dim(tensor: torch.Tensor, dim: int, reverse: bool = False) -> torch.Tensor:
    """Sums along a dimension up to each place, or from its end down to it."""
    return tensor.flip(dim).cumsum(dim).flip(dim) if reverse else tensor.cumsum(dim)


def _outer_pads(tokens: torch.Tensor, pad: int | None, side: str) -> torch.Tensor:
    """True for the pad tokens with which a row begins (side "left") or ends."""
    real = (tokens != pad).int() if pad is not None else torch.ones_like(tokens, dtype=torch.int)
    return get_cumsum_along_dim(real, -1, reverse=side == "right") == 0


def get_attention_mask(tokenizer: Any, tokens: torch.Tensor, prepend_bos: bool) -> torch.Tensor:
    """1 for real tokens and 0 for padding, int64 [batch, pos].

    Padding are the pad tokens at the tokenizer's padding side. At the left the last of them is real where BOS is the
    pad token too and ``prepend_bos`` says that each row has one. Without a tokenizer everything is real.
    """
    mask = torch.ones_like(tokens)
    if tokenizer is None:
        return mask
    pads = _outer_pads(tokens, tokenizer.pad_token_id, tokenizer.padding_side)
    mask[pads] = 0
    if tokenizer.padding_side != "right" and prepend_bos and tokenizer.bos_token_id == tokenizer.pad_token_id:
        rows = torch.arange(len(tokens), device=tokens.device)
        padded = pads.any(-1)
        mask[rows[padded], pads.sum(-1)[padded] - 1] = 1
    return mask


def get_offset_position_ids(past_kv_pos_offset: int, attention_mask: torch.Tensor) -> torch.Tensor:
    """Each token's number among the real ones of its row, from ``past_kv_pos_offset`` on: int64 [batch, pos].

    Padding before the first real token gets 0.

    Args:
        past_kv_pos_offset: how many positions, those of a cache, are left out in front.
        attention_mask: [batch, all positions], 1 for real tokens.
    """
    return (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)[:, past_kv_pos_offset:]


def get_tokenizer_with_bos(tokenizer: Any) -> Any:
    """A tokenizer that puts BOS in front of every text: this one, or another of the same files.

    Raises:
        ConfigError: a tokenizer that is not transformers'.
    """
    if getattr(tokenizer, "add_bos_token", False):
        return tokenizer
    if not hasattr(tokenizer, "init_kwargs"):
        raise _C.ConfigError("get_tokenizer_with_bos: a transformers tokenizer is required; to_tokens has prepend_bos")
    from transformers import AutoTokenizer

    options = {
        key: value for key, value in tokenizer.init_kwargs.items() if key not in ("name_or_path", "add_bos_token")
    }
    return AutoTokenizer.from_pretrained(tokenizer.name_or_path, add_bos_token=True, **options)


def get_input_with_manually_prepended_bos(tokenizer: Any, input: str | list[str]) -> str | list[str]:
    """A text, or each of a list, with the BOS token's own text in front; ``tokenizer`` may be that text itself."""
    bos = tokenizer if isinstance(tokenizer, str) else tokenizer.bos_token
    return bos + input if isinstance(input, str) else [bos + text for text in input]


def get_tokens_with_bos_removed(tokenizer: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [batch, pos - 1] without the BOS that each row has in front, after its padding if that is at the left."""
    if tokenizer.padding_side == "right":
        return tokens[..., 1:]
    if tokenizer.bos_token_id == tokenizer.pad_token_id:
        place = _outer_pads(tokens, tokenizer.pad_token_id, "left").sum(-1) - 1
    else:
        place = (tokens == tokenizer.bos_token_id).int().argmax(-1)
    column = torch.arange(tokens.shape[-1] - 1, device=tokens.device).expand(*tokens.shape[:-1], -1)
    return tokens.gather(-1, column + (column >= place[..., None]))


def repeat_along_head_dimension(tensor: torch.Tensor, n_heads: int, clone_tensor: bool = True) -> torch.Tensor:
    """[batch, pos, d_model] once for each head: [batch, pos, n_heads, d_model], a view unless cloned."""
    repeated = tensor[:, :, None].expand(-1, -1, n_heads, -1)
    return repeated.clone() if clone_tensor else repeated

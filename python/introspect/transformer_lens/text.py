"""Text to tokens and back, with TransformerLens's rules for BOS and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from .. import _C
from ..arguments import Messages, as_texts, is_messages
from .lens_model import LensModel, Side


def tokenizer_of(model: LensModel, who: str) -> Any:
    if model.tokenizer is None:
        raise _C.ConfigError(f"{who}: the model has no tokenizer: its files held none, and none was given")
    return model.tokenizer


def _special_id(model: LensModel, kind: str, who: str) -> int:
    tokenizer = tokenizer_of(model, who)
    id = getattr(tokenizer, f"{kind}_token_id", None)
    id = tokenizer.eos_token_id if id is None else id
    if id is None:
        raise _C.ConfigError(f"{who}: the tokenizer has neither a {kind} nor an eos token")
    return id


def side_of(model: LensModel, padding_side: Side | None) -> str:
    side = padding_side or getattr(model.tokenizer, "padding_side", None) or "right"
    if side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    return side


def _prompt(model: LensModel, messages: Messages) -> str:
    own = getattr(model.tokenizer, "apply_chat_template", None)
    if own is None:  # the native tokenizer, whose template the model has
        return model.apply_chat_template(messages, add_generation_prompt=True)
    return own(list(messages), tokenize=False, add_generation_prompt=True)


def _rows(model: LensModel, texts: Any, prepend_bos: bool | None, truncate: bool, who: str) -> list[list[int]]:
    tokenizer = tokenizer_of(model, who)
    given = [texts] if isinstance(texts, str) or is_messages(texts) else texts
    rows = [
        list(tokenizer.encode(text, add_special_tokens=False))
        for text in as_texts(texts, lambda messages: _prompt(model, messages), who)
    ]
    for place, one in enumerate(given):
        # A chat template writes BOS itself where its model wants one.
        default = model.cfg.default_prepend_bos and isinstance(one, str)
        if default if prepend_bos is None else prepend_bos:
            bos = _special_id(model, "bos", who)
            rows[place] = rows[place] if rows[place][:1] == [bos] else [bos, *rows[place]]
    return [row[: model.cfg.n_ctx] for row in rows] if truncate else rows


def _pad(model: LensModel, rows: Sequence[Sequence[int]], side: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens [batch, pos], and the attention mask where rows differ in length."""
    width = max((len(row) for row in rows), default=0)
    if all(len(row) == width for row in rows):
        return torch.tensor(list(rows), dtype=torch.long).reshape(len(rows), width), None
    tokens = torch.full((len(rows), width), _special_id(model, "pad", "to_tokens"))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for r, row in enumerate(rows):
        real = slice(width - len(row), width) if side == "left" else slice(len(row))
        tokens[r, real], mask[r, real] = torch.tensor(row, dtype=torch.long), True
    return tokens, mask


def _mask_of(model: LensModel, tokens: torch.Tensor, side: str) -> torch.Tensor | None:
    """Which tokens [batch, pos] are real, or None if all are to be taken as real.

    With ``side`` "left", the pad tokens that a row begins with are padding, but for one that is its BOS. Otherwise
    a row that begins or ends with more pad tokens than another of the batch is padded; where EOS or BOS stands in
    for a pad token, nothing tells padding at the right, which changes no other position, from the end of a text.
    """
    if model.tokenizer is None or tokens.numel() == 0:
        return None
    pad = getattr(model.tokenizer, "pad_token_id", None)
    pad = model.tokenizer.eos_token_id if pad is None else pad
    if pad is None or not bool((tokens[:, [0, -1]] == pad).any()):
        return None
    real = tokens != pad
    real[~real.any(1)] = True  # no row is padding only
    n_leading = (real.int().cumsum(1) == 0).sum(1)
    n_trailing = (real.flip(1).int().cumsum(1) == 0).sum(1)
    bos = getattr(model.tokenizer, "bos_token_id", None)
    stands_in = pad in (bos, model.tokenizer.eos_token_id)
    fewest = int(n_leading.min())
    kept = min(fewest, 1 if pad == bos else 0) if side == "left" else fewest
    n_left = (n_leading - kept) * (side == "left" or not stands_in)
    n_right = (n_trailing - n_trailing.min()) * (not stands_in)
    column = torch.arange(tokens.shape[1], device=tokens.device)
    mask = (column >= n_left[:, None]) & (column < tokens.shape[1] - n_right[:, None])
    return None if bool(mask.all()) else mask


def tokens_of(
    model: LensModel, input: str | Sequence[str] | torch.Tensor, prepend_bos: bool | None, padding_side: Side | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What ``forward`` runs for an input: tokens [batch, pos], and their mask or None where all are real."""
    side = side_of(model, padding_side)
    if not isinstance(input, torch.Tensor):
        return _pad(model, _rows(model, input, prepend_bos, True, "forward"), side)
    tokens = input[None] if input.ndim == 1 else input
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise _C.ShapeError(
            f"forward: tokens must be int64 [batch, pos], got {tokens.dtype} {list(tokens.shape)}; a residual goes "
            "with start_at_layer"
        )
    return tokens.long(), _mask_of(model, tokens, side)


def to_tokens(
    model: LensModel,
    input: str | Sequence[str] | Messages | Sequence[Messages],
    prepend_bos: bool | None = None,
    padding_side: Side | None = None,
    move_to_device: bool = True,
    truncate: bool = True,
) -> torch.Tensor:
    """Token ids, int64 [batch, pos], padded where the texts differ in length.

    Messages [{"role": ..., "content": ...}] are written by the chat template, the generation prompt after them.

    Args:
        prepend_bos: None is ``cfg.default_prepend_bos``. A text that begins with the BOS token gets no second one
            (TransformerLens would put two).
        padding_side: None is the tokenizer's.
        move_to_device: to where the model is.
        truncate: leave out what does not fit into ``n_ctx``.

    Raises:
        ConfigError: the model has no tokenizer.
    """
    tokens, _ = _pad(model, _rows(model, input, prepend_bos, truncate, "to_tokens"), side_of(model, padding_side))
    return tokens.to(model.cfg.device) if move_to_device else tokens


def to_string(model: LensModel, tokens: Any) -> str | list[str]:
    """The text of ids [pos] (or of one id), or the texts of ids [batch, pos]; a tensor, array or nested list.

    Raises:
        IndexError: an id outside the vocabulary.
    """
    decode = tokenizer_of(model, "to_string").decode
    ids = torch.as_tensor(tokens)
    if ids.ndim > 2:
        raise _C.ShapeError(f"to_string: tokens must be [pos] or [batch, pos], got {list(ids.shape)}")
    return [decode(row) for row in ids.tolist()] if ids.ndim == 2 else decode(ids.flatten().tolist())


def to_str_tokens(
    model: LensModel,
    input: str | torch.Tensor | np.ndarray | Sequence,
    prepend_bos: bool | None = None,
    padding_side: Side | None = None,
) -> list[str] | list[list[str]]:
    """Each token of a text, or of ids [pos] or [1, pos], as text of its own; a list for each entry of a list.

    A character of several tokens shows as U+FFFD in each of them.
    """
    if isinstance(input, str) or is_messages(input):
        ids = torch.tensor(_rows(model, input, prepend_bos, True, "to_str_tokens")[0])
    elif isinstance(input, torch.Tensor | np.ndarray):
        ids = torch.as_tensor(input).squeeze()
    else:
        return [to_str_tokens(model, one, prepend_bos, padding_side) for one in input]  # type: ignore[misc, return-value]
    if ids.ndim > 1:
        raise _C.ShapeError(f"to_str_tokens: tokens must be [pos] or [1, pos], got {list(ids.shape)}")
    decode = tokenizer_of(model, "to_str_tokens").decode
    return [decode([id]) for id in ids.flatten().tolist()]


def to_single_token(model: LensModel, string: str) -> int:
    """The id of a text that is one token.

    Raises:
        ValueError: it is not.
    """
    (ids,) = _rows(model, [string], False, False, "to_single_token")
    if len(ids) != 1:
        raise ValueError(f"to_single_token: {string!r} is {len(ids)} tokens: {to_str_tokens(model, torch.tensor(ids))}")
    return ids[0]


def to_single_str_token(model: LensModel, int_token: int) -> str:
    """The text of one id."""
    return tokenizer_of(model, "to_single_str_token").decode([int(int_token)])


def get_token_position(
    model: LensModel,
    single_token: str | int | torch.Tensor,
    input: str | torch.Tensor,
    mode: Literal["first", "last"] = "first",
    prepend_bos: bool | None = None,
    padding_side: Side | None = None,
) -> int:
    """Where a token stands in a text, or in ids [pos] or [1, pos].

    Raises:
        ValueError: it does not, or ``single_token`` is a text of several tokens.
    """
    if mode not in ("first", "last"):
        raise ValueError(f"get_token_position: mode must be 'first' or 'last', got {mode!r}")
    tokens = to_tokens(model, input, prepend_bos, padding_side) if isinstance(input, str) else input
    if tokens.ndim == 2 and tokens.shape[0] == 1:
        tokens = tokens[0]
    if tokens.ndim != 1:
        raise _C.ShapeError(f"get_token_position: tokens must be [pos] or [1, pos], got {list(tokens.shape)}")
    id = to_single_token(model, single_token) if isinstance(single_token, str) else int(single_token)
    places = (tokens == id).nonzero().flatten().tolist()
    if not places:
        raise ValueError(f"get_token_position: token {single_token!r} does not occur in the input")
    return places[0 if mode == "first" else -1]

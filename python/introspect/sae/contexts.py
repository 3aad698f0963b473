"""Texts as token contexts, by the rules that a dictionary was trained with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import _C
from ..arguments import native_model
from ..steering.splice import checked_sites


@dataclass(frozen=True, eq=False)
class Contexts:
    """Rows of tokens, all that functions of dictionaries read of texts.

    Attributes:
        tokens: int64 [contexts, tokens].
        lengths: int64 [contexts]; what follows in a row is padding.
        special_tokens: ids that are run, and neither read nor counted.
        texts: int64 [contexts], which of the texts each is of.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    special_tokens: tuple[int, ...]
    texts: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_texts(self) -> int:
        """How many texts they are of."""
        return int(self.texts.max()) + 1

    @property
    def arguments(self) -> dict[str, Any]:
        """What native functions take beside the tokens."""
        return {"lengths": self.lengths, "special_tokens": list(self.special_tokens)}

    def read(self) -> torch.Tensor:
        """Bool [contexts, tokens]: neither padding nor special."""
        read = torch.arange(self.tokens.shape[1]) < self.lengths[:, None]
        for token in self.special_tokens:
            read &= self.tokens != token
        return read


def contexts_of(
    model: Any,
    texts: Contexts | torch.Tensor | str | Sequence[str],
    sae: _C.Dictionary | None = None,
    *,
    context_size: int | None = None,
    special_tokens: bool | Sequence[int] = True,
    who: str = "contexts_of",
) -> Contexts:
    """Contexts of texts or tokens.

    Args:
        texts: one or several, each cut into contexts of its own; tokens int64 [contexts, tokens] as they are; or
            contexts that were made before.
        sae: whose rule for BOS and context length hold, as far as its file says; else the tokenizer's, and n_ctx.
        context_size: the most tokens of a context, BOS too; None: the dictionary's, or at most 1,024.
        special_tokens: that are not read; True: those of the tokenizer (BOS, chat markers), which have the largest
            activations and are no text; or ids.

    Raises:
        ConfigError: texts and a model without tokenizer.
        ShapeError: tokens that are not int64 [contexts, tokens].
        TypeError: something else.
        ValueError: no texts, or an empty one.
    """
    if isinstance(texts, Contexts):
        return texts
    native = native_model(model, who)
    if isinstance(texts, torch.Tensor):
        if texts.ndim != 2 or texts.dtype != torch.int64:
            raise _C.ShapeError(
                f"{who}: tokens must be int64 [contexts, tokens], got {texts.dtype} {list(texts.shape)}"
            )
        lengths = torch.full((len(texts),), texts.shape[1])
        return Contexts(texts.cpu(), lengths, _special(native, texts, special_tokens), torch.arange(len(texts)))
    listed = [texts] if isinstance(texts, str) else list(texts)
    if wrong := [one for one in listed if not isinstance(one, str)]:
        raise TypeError(f"{who}: texts must be text or tokens [contexts, tokens], got {type(wrong[0]).__name__}")
    if not listed:
        raise ValueError(f"{who}: at least one text is needed, got none")
    origin = None if sae is None else sae.origin
    size = context_size or (origin.context_size if origin is not None and origin.context_size else 1024)
    size = min(size, native.cfg.n_ctx)
    prepend = None if origin is None else origin.prepend_bos
    rows, of = [], []
    for number, text in enumerate(listed):
        bos, ids = _ids(native.tokenizer, text, prepend)
        if not ids:
            raise ValueError(f"{who}: every text must have tokens, got {text[:60]!r} as number {number}")
        step = max(size - len(bos), 1)
        for first in range(0, len(ids), step):
            rows.append([*bos, *ids[first : first + step]])
            of.append(number)
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    real = torch.cat([torch.tensor(row) for row in rows])
    return Contexts(tokens, lengths, _special(native, real, special_tokens), torch.tensor(of))


def check_dictionary(who: str, model: Any, sae: _C.Dictionary) -> None:
    """Raise or warn of what does not fit between a dictionary of one model and the model; see ``model.splice``."""
    if not isinstance(sae, _C.Dictionary):
        raise TypeError(f"{who}: sae must be an introspect.SAE, got {type(sae).__name__}")
    if len(sae.origin.inputs) == 1 and len(sae.origin.outputs) <= 1:
        with warnings.catch_warnings():  # contexts_of begins texts as the dictionary's were
            warnings.filterwarnings("ignore", message=".* BOS token in front")
            checked_sites(model, sae, who)


def _ids(tokenizer: _C.Tokenizer, text: str, prepend_bos: bool | None) -> tuple[list[int], list[int]]:
    """What every context of the text begins with, and the text's own ids."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if prepend_bos is None:
        with_bos = tokenizer.encode(text)
        begins = tokenizer.bos_token_id if with_bos[:1] == [tokenizer.bos_token_id] != ids[:1] else None
    else:
        bos = tokenizer.bos_token_id
        begins = (tokenizer.eos_token_id if bos is None else bos) if prepend_bos else None
    if begins is None:
        return [], ids
    return [begins], ids[1:] if ids[:1] == [begins] else ids


def _special(native: _C.Model, tokens: torch.Tensor, given: bool | Sequence[int]) -> tuple[int, ...]:
    if given is False:
        return ()
    if given is not True:
        return tuple(int(one) for one in given)
    try:
        tokenizer = native.tokenizer
    except _C.ConfigError:
        return ()
    size = len(tokenizer)
    return tuple(one for one in tokens.unique().tolist() if one < size and tokenizer.is_special(one))

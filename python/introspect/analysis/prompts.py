"""Prompts in the forms in which people give them, as token ids; pairs that must be aligned."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | torch.Tensor


def tokens_of(model: Any, prompts: Prompts, who: str, name: str) -> list[list[int]]:
    """Prompts as token ids, one list each: texts, lists of ids, or an array or tensor [batch, pos] or [pos].

    Raises:
        TypeError: something else, or none.
        ValueError: a prompt without tokens.
    """
    wanted = f"{who}: {name} must be a text, token ids, or a list of them"
    listed: Any = [prompts] if isinstance(prompts, str) else prompts
    if hasattr(listed, "tolist"):
        listed = listed.tolist()
    if not isinstance(listed, Sequence) or not len(listed):
        raise TypeError(f"{wanted}, got {prompts!r}")
    if isinstance(listed[0], Integral):
        listed = [listed]
    out = []
    for number, one in enumerate(listed):
        ids = model.to_tokens(one)[0] if isinstance(one, str) else one
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if not isinstance(ids, Sequence) or not all(isinstance(id, Integral) for id in ids):
            raise TypeError(f"{wanted}, got {one!r}")
        if not len(ids):
            raise ValueError(f"{who}: prompts must have tokens, and number {number} of {name} has none: {one!r}")
        out.append([int(id) for id in ids])
    return out


def one_prompt(model: Any, prompt: Prompts, who: str) -> list[int]:
    """The same of a single prompt.

    Raises:
        ValueError: several of them.
    """
    found = tokens_of(model, prompt, who, "prompt")
    if len(found) != 1:
        raise ValueError(f"{who}: one prompt is wanted, got {len(found)}")
    return found[0]


def check_aligned(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], who: str) -> None:
    """Raises ValueError, with both lengths and where they differ first, unless prompts of a pair are as long."""
    for number, (clean, corrupted) in enumerate(pairs):
        if len(clean) == len(corrupted):
            continue
        shorter = min(len(clean), len(corrupted))
        first = next((i for i in range(shorter) if clean[i] != corrupted[i]), shorter)
        here, there = (_shown(model, ids, first) for ids in (clean, corrupted))
        raise ValueError(
            f"{who}: clean and corrupted prompts must have as many tokens; those of pair {number} have {len(clean)} "
            f"and {len(corrupted)}, and differ first at token {first}: {here} against {there}"
        )


def _shown(model: Any, ids: Sequence[int], place: int) -> str:
    if place >= len(ids):
        return "its end"
    return repr(model.tokenizer.decode([ids[place]])) if getattr(model, "tokenizer", None) else str(ids[place])

"""What an injection adds to each block, and where, as ``run_experiment`` works it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from .. import _C
from ..experiments.run import conversation_tokens
from ..steering.norms import residual_norms

if TYPE_CHECKING:
    from ..model import Model
    from ..steering.training import ControlVector


class Spanned(NamedTuple):
    """A conversation's tokens, and the injected ones among them, [first, last)."""

    tokens: list[int]
    span: tuple[int, int]


def adds_to_one_span(protocol: _C.Protocol) -> bool:
    """Whether a protocol adds vectors to whole messages that follow one another."""
    injected = protocol.injected
    is_whole = bool(injected) and injected == list(range(injected[0], injected[-1] + 1))
    return is_whole and protocol.inject == "vector"


def spanned(model: Model, protocol: _C.Protocol) -> Spanned:
    """The conversation of a protocol that adds to one span."""
    ids = conversation_tokens(model, protocol)
    first = len(ids.before)
    return Spanned([*ids.before, *ids.injected, *ids.after], (first, first + len(ids.injected)))


def added(
    model: Model,
    vector: ControlVector,
    strength: float,
    unit: str,
    blocks: Sequence[int],
    tokens: Sequence[int],
    span: tuple[int, int],
) -> dict[int, torch.Tensor]:
    """{block: [d_model]} of the blocks that the vector has directions for.

    Args:
        unit: "absolute", or "residual": directions count as unit vectors, and 1 is the median norm of the unsteered
            stream over the injected tokens, without the conversation's first token where there are others.
        tokens: of the whole conversation.
        span: the injected ones, [first, last).
    """
    chosen = [block for block in blocks if block in vector.directions]
    if unit == "absolute":
        return {block: strength * vector.directions[block] for block in chosen}
    counted = [p for p in range(*span) if p > 0 or span[1] - span[0] == 1]
    norms = residual_norms(model, torch.tensor([list(tokens)]), layers=chosen, positions=counted)
    directions = {block: torch.nn.functional.normalize(vector.directions[block], dim=0) for block in chosen}
    return {block: strength * norms[block] * directions[block] for block in chosen}

"""What an injection adds to the output of each block, as ``run_experiment`` works it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..steering.norms import residual_norms

if TYPE_CHECKING:
    from ..model import Model
    from ..steering.training import ControlVector


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
